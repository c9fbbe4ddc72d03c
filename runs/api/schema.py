"""Pieces of the OpenAPI document that several views share."""

from __future__ import annotations

from drf_spectacular.utils import OpenApiParameter, inline_serializer
from rest_framework import serializers

from runs.api.lookups import LONGEST_WAIT
from runs.api.records import WholeTask

ERROR = inline_serializer(
    "Error",
    {
        "error": inline_serializer(
            "ErrorBody",
            {
                "code": serializers.CharField(),
                "message": serializers.CharField(),
                "details": serializers.JSONField(required=False),
            },
        )
    },
)
ACCEPTED = inline_serializer("Accepted", {"taskId": serializers.CharField(), "status": serializers.CharField()})
SETTLED = inline_serializer(
    "Settled",
    {
        "taskId": serializers.CharField(),
        "status": serializers.CharField(),
        "output": serializers.CharField(required=False, allow_null=True),
        "error": serializers.JSONField(required=False, allow_null=True),
        "task": WholeTask(required=False),
    },
)
WAIT = OpenApiParameter("wait", float, description=f"Answer when the task is over; seconds, at most {LONGEST_WAIT}.")
KEY = OpenApiParameter("Idempotency-Key", location="header", description="The same key gives the same task, once.")
