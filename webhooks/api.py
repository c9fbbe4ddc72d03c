"""Projects over REST: the whole folder in one request, applied whole or not at all."""

from __future__ import annotations

import base64
import binascii
from dataclasses import asdict
from typing import Any

from drf_spectacular.utils import extend_schema, inline_serializer
from pydantic import ValidationError
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from agents import manifest
from agents.manifest import checks, export
from runs.api.agents import detail
from runs.api.auth import workspace_of
from runs.api.bodies import Strict
from runs.api.errors import ApiError
from runs.api.schema import ERROR
from webhooks import credentials, projects
from webhooks.polls import rows as polls
from webhooks.polls import told

detail("polls", told.described)  # what the REST of runs cannot know


class Bundle(Strict):
    files = serializers.DictField(child=serializers.CharField(allow_blank=True), help_text="Path to base64.")
    network = serializers.ChoiceField(["none", "gateway", "allowlist", "open"], required=False, allow_null=True)


APPLIED = inline_serializer(
    "Applied",
    {
        "created": serializers.ListField(child=serializers.CharField()),
        "updated": serializers.ListField(child=serializers.CharField()),
        "unchanged": serializers.ListField(child=serializers.CharField()),
        "deactivated": serializers.ListField(child=serializers.CharField()),
        "sources": serializers.ListField(child=serializers.CharField()),
        "warnings": serializers.ListField(child=serializers.DictField()),
    },
)


EXPORTED = inline_serializer(
    "Exported", {"project": serializers.CharField(), "files": serializers.DictField(child=serializers.CharField())}
)


class Projects(APIView):
    @extend_schema(responses={200: EXPORTED, 404: ERROR})
    def get(self, request: Request, name: str) -> Response:
        """The folder that this project's agents and sources could come from: path to base64."""
        try:
            project = projects.stored(workspace_of(request), "" if name == checks.IN_ADMIN else name)
        except projects.NoProject as error:
            raise ApiError(404, "PROJECT_NOT_FOUND", str(error)) from error
        except ValidationError as error:
            raise ApiError(
                409, "DEFINITION_UNREADABLE", "a stored definition cannot be read: apply it again"
            ) from error
        files = {path: base64.b64encode(content).decode() for path, content in export.files_of(project).items()}
        return Response({"project": project.name, "files": files})

    @extend_schema(request=Bundle, responses={200: APPLIED, 400: ERROR, 409: ERROR})
    def put(self, request: Request, name: str) -> Response:
        """Make this project's agents and sources match its folder."""
        form = Bundle(data=request.data)
        form.is_valid(raise_exception=True)
        asked: dict[str, Any] = form.validated_data
        files = {path: decoded(path, content) for path, content in asked["files"].items()}
        try:
            reading = manifest.parse(files, project=name, network=asked.get("network"))
            changes = projects.apply(workspace_of(request), reading.project)
        except manifest.Faulty as error:
            faults = [asdict(fault) for fault in error.faults]
            raise ApiError(400, "INVALID_PROJECT", f"the project has {len(faults)} faults", faults) from error
        except projects.NameTaken as error:
            raise ApiError(409, "NAME_TAKEN", str(error)) from error
        lacking = credentials.warnings(workspace_of(request), reading.project)
        lacking += [manifest.Fault("polls", None, fault) for fault in polls.refused_here(reading.project)]
        warnings = [asdict(warning) for warning in (*reading.warnings, *lacking)]
        return Response({**asdict(changes), "warnings": warnings})


def decoded(path: str, content: str) -> bytes:
    try:
        return base64.b64decode(content, validate=True)
    except binascii.Error as error:
        raise ApiError(400, "VALIDATION_ERROR", f"{path} is not base64") from error
