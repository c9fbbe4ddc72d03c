"""The whole fleet over REST: pause and resume."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from agents.models import Workspace
from runs import events, queue
from runs.api.auth import workspace_of

FLEET = inline_serializer(
    "Fleet",
    {"paused": serializers.BooleanField(), "paused_at": serializers.DateTimeField(allow_null=True)},
)


class FleetPause(APIView):
    @extend_schema(request=None, responses=inline_serializer("PausedFleet", {"fleet": FLEET}))
    def post(self, request: Request) -> Response:
        """Start nothing new for any agent, whatever asks; what has begun goes on."""
        queue.pause_fleet(workspace_of(request))
        return Response({"fleet": as_it_is_now(workspace_of(request))})


class FleetResume(APIView):
    @extend_schema(request=None, responses=inline_serializer("ResumedFleet", {"fleet": FLEET}))
    def post(self, request: Request) -> Response:
        """Take work again. Agents that are paused themselves stay so; ticks that passed are not made up for."""
        queue.resume_fleet(workspace_of(request))
        return Response({"fleet": as_it_is_now(workspace_of(request))})


def as_it_is_now(workspace: Workspace) -> dict[str, Any]:
    workspace.refresh_from_db(fields=["paused_at"])
    since = workspace.paused_at
    return {"paused": since is not None, "paused_at": events.isoformat(since) if since else None}
