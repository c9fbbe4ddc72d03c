"""Logging in by a link that works once: there is no default password to forget to change."""

from __future__ import annotations

from django.contrib.auth import get_user_model, login
from django.contrib.auth.models import User
from django.contrib.auth.tokens import PasswordResetTokenGenerator
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from rest_framework.decorators import api_view
from rest_framework.exceptions import PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response

from runs.api.auth import Caller

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
    """The path of a fresh link for the operator."""
    user = operator()
    return reverse("login-by-link", args=[user.pk, tokens.make_token(user)])


@api_view(["POST"])
def new_link(request: Request) -> Response:
    """A link that logs the operator in, once. Only for the token of this server's own command line.

    Tokens handed to other programs may start runs; none of them makes its holder an operator.
    """
    if not (isinstance(request.user, Caller) and request.user.token.is_operators):
        raise PermissionDenied("only the token in the server's home may log a person in")
    return Response({"path": link_path()})


def login_by_link(request: HttpRequest, user_id: int, token: str) -> HttpResponse:
    user = get_user_model().objects.filter(pk=user_id, is_active=True).first()
    if user is None or not tokens.check_token(user, token):
        return render(request, "login_link_used.html", status=403)
    login(request, user, backend="django.contrib.auth.backends.ModelBackend")
    return redirect("admin:index")
