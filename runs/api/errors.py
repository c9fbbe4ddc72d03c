"""One error shape for every answer of the API: {"error": {"code", "message", "details"?}}, with stable codes."""

from __future__ import annotations

import logging
from typing import Any

from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.views.defaults import page_not_found
from rest_framework import exceptions, status
from rest_framework.response import Response

log = logging.getLogger(__name__)

CODES = {
    status.HTTP_401_UNAUTHORIZED: "UNAUTHORIZED",
    status.HTTP_403_FORBIDDEN: "FORBIDDEN",
    status.HTTP_404_NOT_FOUND: "NOT_FOUND",
    status.HTTP_405_METHOD_NOT_ALLOWED: "METHOD_NOT_ALLOWED",
    status.HTTP_406_NOT_ACCEPTABLE: "NOT_ACCEPTABLE",
    status.HTTP_413_REQUEST_ENTITY_TOO_LARGE: "PAYLOAD_TOO_LARGE",
    status.HTTP_415_UNSUPPORTED_MEDIA_TYPE: "UNSUPPORTED_MEDIA_TYPE",
    status.HTTP_429_TOO_MANY_REQUESTS: "TOO_MANY_REQUESTS",
}


class ApiError(exceptions.APIException):
    """An answer other than success, with its code and a sentence."""

    def __init__(self, http_status: int, code: str, message: str, details: Any = None) -> None:
        super().__init__(message, code)
        self.status_code = http_status
        self.error_code = code
        self.message = message
        self.details = details


def body(code: str, message: str, details: Any = None) -> dict[str, Any]:
    return {"error": {"code": code, "message": message, **({} if details is None else {"details": details})}}


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler404: programs get the one shape too, where they asked for a path that is none."""
    if request.path.startswith("/api/"):
        return JsonResponse(body("NOT_FOUND", "there is nothing here"), status=404)
    return page_not_found(request, exception)


def handle(error: Exception, context: dict[str, Any]) -> Response | None:
    """REST framework's exception handler. None lets Django answer 500, and log."""
    if isinstance(error, ApiError):
        return Response(body(error.error_code, error.message, error.details), status=error.status_code)
    if isinstance(error, exceptions.ValidationError):
        return Response(body("VALIDATION_ERROR", sentence(error.detail), error.detail), status=400)
    if isinstance(error, exceptions.ParseError):
        return Response(body("VALIDATION_ERROR", str(error.detail)), status=400)
    if isinstance(error, Http404):
        return Response(body("NOT_FOUND", "there is nothing here"), status=404)
    if isinstance(error, exceptions.APIException):
        code = CODES.get(error.status_code, "ERROR")
        headers = {"WWW-Authenticate": "Bearer"} if error.status_code == status.HTTP_401_UNAUTHORIZED else None
        return Response(body(code, str(error.detail)), status=error.status_code, headers=headers)
    return None


def sentence(detail: Any) -> str:
    """The faults of a validation error on one line: `input: This field is required.`"""
    if isinstance(detail, dict):
        return "; ".join(f"{field}: {sentence(fault)}" for field, fault in detail.items())
    if isinstance(detail, list):
        return " ".join(sentence(fault) for fault in detail)
    return str(detail)
