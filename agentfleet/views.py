"""What answers over HTTP and belongs to no part: is anybody there, and the way in."""

from __future__ import annotations

from django.contrib.auth import get_user_model, login
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import redirect, render
from django.views.decorators.http import require_safe
from rest_framework.decorators import api_view
from rest_framework.exceptions import PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response

from agentfleet.login import link_path, tokens
from runs import readiness
from runs.api.auth import Caller, caller_of


def healthz(request: HttpRequest) -> JsonResponse:
    """This process answers. Whether the fleet works is another question."""
    return JsonResponse({"status": "ok"})


@require_safe
def readyz(request: HttpRequest) -> JsonResponse:
    """The fleet works: 200, else 503. How and why is for those with a token; the answer comes within two seconds."""
    report = readiness.now()
    header = request.headers.get("authorization", "").encode("latin-1")
    trusted = report.checks["database"].ok and readiness.within(0.5, lambda: holds_token(header), otherwise=False)
    answer = JsonResponse(report.told(details=trusted), status=200 if report.ok else 503)
    answer.headers["Cache-Control"] = "no-store"
    return answer


def holds_token(header: bytes) -> bool:
    """Raises AuthenticationFailed."""
    return caller_of(header) is not None


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
