"""The transcript of a task, as the model was shown it."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import OpenApiResponse, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from runs import events, queue, transcript
from runs.api.errors import ApiError
from runs.api.lookups import run_or_404
from runs.api.schema import ERROR
from runs.models import Attempt
from runs.transcript import Body


class TaskContext(APIView):
    @extend_schema(responses={200: OpenApiResponse(description="The transcript as the model has it."), 404: ERROR})
    def get(self, request: Request, run_id: str) -> Response:
        """What the model was shown last; null before its first request."""
        run = run_or_404(request, run_id)
        attempt = run.attempts.order_by("-number").first()
        messages = readable(attempt) if attempt else []
        if attempt is None or not messages:
            return Response({"taskId": run.pk, "context": None})
        newest = attempt.messages.order_by("-position").values_list("created_at", flat=True)[0]
        context = {
            "messages": [spoken for body in messages for spoken in in_roles(body)],
            "tools": queue.tools_of(run),
            "iteration": run.turns,
            "timestamp": events.isoformat(newest),
        }
        return Response({"taskId": run.pk, "context": context})


def readable(attempt: Attempt) -> list[Body]:
    """The transcript. Raises ApiError."""
    try:
        return transcript.load(attempt)
    except transcript.Corrupt as error:
        raise ApiError(500, error.code, str(error)) from error


def in_roles(body: Body) -> list[dict[str, Any]]:
    """A message as the seed shows it: role, content, tool_calls."""
    if body["role"] == "assistant":
        calls = [
            {"id": part["id"], "name": part["name"], "arguments": part["arguments"]}
            for part in transcript.tool_calls(body)
        ]
        said = {"role": "assistant", "content": transcript.text(body) or None}
        return [{**said, "tool_calls": calls} if calls else said]
    if body["role"] == "tool":
        return [{"role": "tool", "tool_call_id": part["id"], "content": part["text"]} for part in body["parts"]]
    roles = {"system": "system"}
    return [{"role": roles.get(part["type"], "user"), "content": part["text"]} for part in body["parts"]]
