"""Logging in by a link that works once: there is no default password to forget to change."""

from __future__ import annotations

from django.contrib.auth import get_user_model
from django.contrib.auth.models import User
from django.contrib.auth.tokens import PasswordResetTokenGenerator

OPERATOR = "admin"


class LoginTokens(PasswordResetTokenGenerator):
    """Its hash covers the last login, so the first use ends it; so does PASSWORD_RESET_TIMEOUT."""

    key_salt = "agentfleet.login"


tokens = LoginTokens()


def operator() -> User:
    """The first user, made without a password."""
    users = get_user_model()
    known = users.objects.filter(username=OPERATOR).first()
    return known or users.objects.create_superuser(OPERATOR)


def link_path() -> str:
    """The path of a fresh link for the operator.

    Put together here as `urls` has it: looking it up there would load the whole admin before anything starts.
    """
    user = operator()
    return f"/login/{user.pk}/{tokens.make_token(user)}/"
