"""Answers that come when a run is over, or when nothing more will happen without a person.

The views here and the plain `agents/{name}/run` answer at once, with what is so. The server asks them, awaits
`runs.stream.until_settled`, and asks again: whoever waits costs a coroutine, and every answer is a plain one.
"""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from runs.api.lookups import LONGEST_WAIT, run_or_404, seconds
from runs.api.records import WholeTask
from runs.api.schema import ERROR, SETTLED
from runs.models import Run
from runs.stream import waits_for_a_person

UNLESS_TOLD = "30"  # seconds: less than what proxies allow a request

TIMEOUT = OpenApiParameter("timeout", float, description=f"Seconds, 0 to {LONGEST_WAIT}; {UNLESS_TOLD} unless told.")


class TaskWait(APIView):
    @extend_schema(parameters=[TIMEOUT], responses={200: SETTLED, 202: SETTLED, 400: ERROR, 404: ERROR})
    def get(self, request: Request, run_id: str) -> Response:
        """Answer when the task is over: 200. Not over after `timeout`, or waiting for a person: 202."""
        seconds(request.query_params, "timeout", UNLESS_TOLD)
        run = run_or_404(request, run_id)
        return Response(told(run), status=200 if run.terminal else 202)


def told(run: Run) -> dict[str, Any]:
    """The record is in it only where asking again would tell nothing new."""
    known: dict[str, Any] = {"taskId": run.pk, "status": run.status}
    if run.terminal:
        return {**known, "output": run.output, "error": run.error, "task": WholeTask(run).data}
    if waits_for_a_person(run):
        return {**known, "task": WholeTask(run).data}
    return known
