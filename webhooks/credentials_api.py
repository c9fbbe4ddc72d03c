"""Credentials over REST: names and where they are, and values only inwards. For the operator's token alone."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema, inline_serializer
from rest_framework import permissions, serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from agents.credentials import CredentialError, Reference, is_name
from agents.credentials.rows import RowStore
from runs.api.auth import Caller, workspace_of
from runs.api.bodies import Strict, Text
from runs.api.errors import ApiError
from runs.api.schema import ERROR
from webhooks import credentials

LARGEST = 64 * 1024  # characters of one value


class IsOperator(permissions.BasePermission):
    """Tokens handed to other programs may start runs; none of them changes what runs are given."""

    message = "only the token in the server's home may see or change credentials"

    def has_permission(self, request: Request, view: APIView) -> bool:
        return isinstance(request.user, Caller) and request.user.token.is_operators


class Values(Strict):
    values = serializers.DictField(
        child=Text(max_length=LARGEST), allow_empty=False, write_only=True, help_text="Field to value."
    )


CREDENTIAL = inline_serializer(
    "Credential",
    {
        "reference": serializers.CharField(),
        "type": serializers.CharField(),
        "instance": serializers.CharField(),
        "state": serializers.ChoiceField(["there", "missing", "faulty"]),
        "fault": serializers.CharField(),
        "store": serializers.CharField(help_text="Empty: none has it."),
        "fields": serializers.ListField(child=serializers.CharField()),
        "used_by": serializers.ListField(child=serializers.CharField()),
    },
)


class Credentials(APIView):
    permission_classes = (IsOperator,)

    @extend_schema(
        responses=inline_serializer("CredentialList", {"credentials": serializers.ListField(child=CREDENTIAL)})
    )
    def get(self, request: Request) -> Response:
        """Every credential of the workspace: who names it, which store has it, what is wrong. Never a value."""
        return Response({"credentials": [shown(one) for one in credentials.listed(workspace_of(request))]})


class CredentialDetail(APIView):
    permission_classes = (IsOperator,)

    @extend_schema(request=Values, responses={200: CREDENTIAL, 400: ERROR, 403: ERROR})
    def put(self, request: Request, reference: str) -> Response:
        """Keep these fields in the database, encrypted, in place of older values; other fields stay."""
        wanted = reference_or_400(reference)
        form = Values(data=request.data)
        form.is_valid(raise_exception=True)
        values: dict[str, str] = form.validated_data["values"]
        if bad := [name for name, value in values.items() if not (is_name(name) and value.strip())]:
            raise ApiError(400, "VALIDATION_ERROR", f"{bad[0]!r} is no name of a field, or has no value")
        workspace = workspace_of(request)
        try:
            RowStore(workspace.name).put(wanted, values)
        except CredentialError as error:
            raise ApiError(409, "CREDENTIAL_ERROR", str(error)) from error
        told = credentials.listed(workspace)
        return Response(next(shown(one) for one in told if one.standing.reference == wanted))

    @extend_schema(responses={200: inline_serializer("Removed", {"removed": serializers.BooleanField()}), 403: ERROR})
    def delete(self, request: Request, reference: str) -> Response:
        """Forget what the database has of it; `removed` is false if that was nothing."""
        return Response({"removed": RowStore(workspace_of(request).name).remove(reference_or_400(reference))})


def reference_or_400(text: str) -> Reference:
    try:
        return Reference.parse(text)
    except CredentialError as error:
        raise ApiError(400, "VALIDATION_ERROR", str(error)) from error


def shown(one: credentials.Listed) -> dict[str, Any]:
    known = one.standing
    return {
        "reference": str(known.reference),
        "type": known.reference.type,
        "instance": known.reference.instance,
        "state": known.word,
        "fault": known.fault,
        "store": known.store,
        "fields": known.fields,
        "used_by": one.used_by,
    }
