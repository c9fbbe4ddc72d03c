"""Starting a run over REST, as a task or by hand."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import extend_schema
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from agents.models import Agent, Priority
from runs import queue
from runs.api import errors
from runs.api.bodies import NewRun, NewTask
from runs.api.errors import ApiError
from runs.api.lookups import agent_or_404, seconds
from runs.api.schema import ACCEPTED, ERROR, KEY, SETTLED, WAIT
from runs.lifecycle import Cause
from runs.models import TriggerKind

RETRY_AFTER = "5"  # seconds; what a full line tells who asks
LATER_FIELDS = {
    "maxIdleSeconds": "idle_seconds",
    "costBudgetUsd": "cost_budget",
    "maxOutputBytes": "output_limit",
    "sessionKey": "session_key",
    "claimKey": "claim_key",
}


class AgentTasks(APIView):
    @extend_schema(request=NewTask, parameters=[KEY], responses={202: ACCEPTED, 200: ACCEPTED, 400: ERROR, 404: ERROR})
    def post(self, request: Request, name: str) -> Response:
        """Start a background task."""
        agent = agent_or_404(request, name)
        if not agent.task_enabled:
            raise ApiError(400, "MODE_NOT_SUPPORTED", f"agent {name} does not take tasks ([task] enabled = false)")
        return start(request, agent, NewTask, TriggerKind.API)


class AgentRuns(APIView):
    @extend_schema(
        request=NewRun,
        parameters=[KEY, WAIT],
        responses={202: SETTLED, 200: SETTLED, 400: ERROR, 404: ERROR, 409: ERROR},
    )
    def post(self, request: Request, name: str) -> Response:
        """Run an agent by hand, with or without a prompt; with `wait`, answer when it is over."""
        seconds(request.query_params, "wait", "0")  # a fault starts nothing; the waiting itself is done outside
        return start(request, agent_or_404(request, name), NewRun, TriggerKind.MANUAL)


def start(request: Request, agent: Agent, body: type[NewTask], trigger: TriggerKind) -> Response:
    """202 with the new task; 200 with the old one, if the idempotency key was used before."""
    form = body(data=request.data)
    form.is_valid(raise_exception=True)
    asked: dict[str, Any] = form.validated_data
    try:
        run, new = queue.submit(
            agent,
            Cause(trigger),
            input=asked["input"],
            tags=asked.get("tags", []),
            priority=Priority.named(asked["priority"]) if "priority" in asked else None,
            idempotency_key=request.headers.get("Idempotency-Key", "")[:255],
            **fields_of(asked),
        )
    except queue.AgentRefuses as refusal:
        raise ApiError(409, refusal.code, str(refusal)) from refusal
    except queue.Coalesced as busy:
        raise ApiError(409, "CLAIM_KEY_BUSY", str(busy), {"taskId": busy.run_id}) from busy
    except queue.QueueFull as full:
        return queue_full(full)
    except queue.KeyReused as error:
        message = f"this Idempotency-Key belongs to another request, which made task {error}"
        raise ApiError(409, "IDEMPOTENCY_KEY_REUSED", message) from error
    return Response({"taskId": run.pk, "status": run.status}, status=202 if new else 200)


def fields_of(asked: dict[str, Any]) -> dict[str, Any]:
    """Columns of the run. The later ones only where they are asked for: all are part of the request's digest."""
    given = {column: asked[name] for name, column in LATER_FIELDS.items() if name in asked}
    return {
        "max_turns": asked.get("maxIterations"),
        "wall_seconds": asked.get("maxDurationSeconds"),
        "token_budget": asked.get("tokenBudget"),
        **given,
    }


def queue_full(full: queue.QueueFull) -> Response:
    return Response(errors.body("QUEUE_FULL", str(full)), status=429, headers={"Retry-After": RETRY_AFTER})
