"""Bearer tokens."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.models import AnonymousUser
from drf_spectacular.extensions import OpenApiAuthenticationExtension
from rest_framework import exceptions
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.request import Request

from agents import clock
from agents.models import ApiToken, Workspace


class Caller(AnonymousUser):
    """Whoever holds a token: no person, but allowed in, and of one workspace."""

    def __init__(self, token: ApiToken) -> None:
        self.token = token
        self.workspace: Workspace = token.workspace

    @property
    def is_authenticated(self) -> Any:
        return True


class BearerToken(BaseAuthentication):
    def authenticate(self, request: Request) -> tuple[Caller, ApiToken] | None:
        caller = caller_of(get_authorization_header(request))
        return None if caller is None else (caller, caller.token)

    def authenticate_header(self, request: Request) -> str:
        return "Bearer"


def caller_of(header: bytes) -> Caller | None:
    """Who sends this Authorization header; None if there is none. Raises AuthenticationFailed."""
    if not header:
        return None
    scheme, _, value = header.partition(b" ")
    if scheme.lower() != b"bearer" or not value.strip():
        raise exceptions.AuthenticationFailed("send the header Authorization: Bearer <token>")
    token = ApiToken.find(value.strip().decode("latin-1"))
    if token is None:
        raise exceptions.AuthenticationFailed("this token is not known, or was revoked")
    token.touch(clock.now())
    return Caller(token)


def workspace_of(request: Request) -> Workspace:
    """The workspace a request is about: that of its token."""
    caller = request.user
    assert isinstance(caller, Caller), "the API takes bearer tokens only"
    return caller.workspace


class BearerTokenScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = BearerToken
    name = "bearer"

    def get_security_definition(self, auto_schema: Any) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer"}
