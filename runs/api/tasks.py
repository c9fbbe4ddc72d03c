"""The tasks API, to the letter of spec/airstore-machina-veil.md 3: a task is a run."""

from __future__ import annotations

import re
from dataclasses import asdict
from decimal import Decimal
from typing import Any, TypeVar

from django.db.models import Model, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce
from django.http import QueryDict
from django_filters import rest_framework as filters
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from agents.models import Agent, Priority
from runs import definitions, events, inputs, limits, queue, transcript
from runs.api import errors
from runs.api.auth import workspace_of
from runs.api.errors import ApiError
from runs.lifecycle import Cause
from runs.models import Attempt, Run, Status, TriggerKind
from runs.transcript import Body

Row = TypeVar("Row", bound=Model)

LARGEST_INPUT = 1024 * 1024  # characters
LONGEST_WAIT = 300  # seconds a request may wait for a run
RETRY_AFTER = "5"  # seconds; what a full line tells who asks
LATER_FIELDS = {
    "maxIdleSeconds": "idle_seconds",
    "costBudgetUsd": "cost_budget",
    "maxOutputBytes": "output_limit",
    "sessionKey": "session_key",
    "claimKey": "claim_key",
}
SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


class Strict(serializers.Serializer[Any]):
    """A request body whose unknown fields are faults, not silence."""

    def to_internal_value(self, data: Any) -> Any:
        if isinstance(data, dict) and (unknown := sorted(set(data) - set(self.fields))):
            known = ", ".join(self.fields)
            raise serializers.ValidationError(dict.fromkeys(unknown, f"unknown field; known are {known}"))
        return super().to_internal_value(data)


class Text(serializers.CharField):
    """Text and nothing else: the framework's own field makes text of numbers, and "inf" of 7e999."""

    def to_internal_value(self, data: Any) -> str:
        if not isinstance(data, str):
            self.fail("invalid")
        return super().to_internal_value(data)


class NewTask(Strict):
    input = Text(max_length=LARGEST_INPUT)
    priority = serializers.ChoiceField(["high", "normal", "low"], required=False)
    tags = serializers.ListField(child=Text(max_length=100), max_length=50, required=False)
    maxIterations = serializers.IntegerField(min_value=0, max_value=10_000, required=False)  # noqa: N815
    maxDurationSeconds = serializers.IntegerField(min_value=0, max_value=31_536_000, required=False)  # noqa: N815
    tokenBudget = serializers.IntegerField(min_value=0, max_value=2_000_000_000, required=False)  # noqa: N815
    maxIdleSeconds = serializers.IntegerField(min_value=0, max_value=31_536_000, required=False)  # noqa: N815
    costBudgetUsd = serializers.DecimalField(  # noqa: N815
        max_digits=12, decimal_places=6, min_value=Decimal(0), max_value=Decimal(100_000), required=False
    )
    maxOutputBytes = serializers.IntegerField(min_value=0, max_value=2**53, required=False)  # noqa: N815
    sessionKey = Text(max_length=200, required=False)  # noqa: N815
    claimKey = Text(max_length=200, required=False)  # noqa: N815


class NewRun(NewTask):
    input = Text(max_length=LARGEST_INPUT, required=False, allow_blank=True, default="")


class Answer(Strict):
    message = Text(max_length=LARGEST_INPUT)


class Task(serializers.ModelSerializer[Run]):
    """One record for lists and details alike: the seed's fields first, then ours."""

    agent_name = serializers.CharField(source="agent.name")
    session_id = serializers.SerializerMethodField()
    priority = serializers.SerializerMethodField()
    eventCount = serializers.IntegerField(source="last_event")  # noqa: N815
    iterations = serializers.IntegerField(source="turns")
    token_input = serializers.IntegerField(source="input_tokens")
    token_output = serializers.IntegerField(source="output_tokens")
    parent_task_id = serializers.CharField(source="parent_id", allow_null=True)
    claim_key = serializers.SerializerMethodField()
    attempts = serializers.IntegerField(source="attempt_count", help_text="How many there have been.")
    cost_usd = serializers.SerializerMethodField(help_text="As far as known, with six digits.")
    deadline_at = serializers.SerializerMethodField()
    limits = serializers.SerializerMethodField(help_text="Its own where it was given some, else its agent's; 0: none.")
    rerun_of = serializers.CharField(source="rerun_of_id", allow_null=True)
    resumed_from = serializers.CharField(source="resumed_from_id", allow_null=True)
    returnValue = serializers.CharField(source="return_value", allow_null=True)  # noqa: N815
    definition = serializers.SerializerMethodField(
        help_text="Its version, null before it starts; current: the agent's."
    )
    interaction = serializers.SerializerMethodField(help_text="working, waiting_for_input or closed.")
    created_at = serializers.SerializerMethodField()
    started_at = serializers.SerializerMethodField()
    finished_at = serializers.SerializerMethodField()
    wait_reason = serializers.SerializerMethodField()
    cancel_requested_at = serializers.SerializerMethodField()

    class Meta:
        model = Run
        fields = (
            "id", "agent_name", "session_id", "status", "priority", "input", "output", "error", "eventCount",
            "iterations", "token_input", "token_output", "tags", "parent_task_id", "created_at", "started_at",
            "finished_at", "wait_reason", "question", "status_text", "trigger", "caused_by", "cancel_requested_at",
            "claim_key", "attempts", "cost_usd", "output_bytes", "exit_code", "deadline_at", "limits", "rerun_of",
            "rerun_number", "resumed_from", "interaction", "returnValue", "definition",
        )  # fmt: skip

    def get_session_id(self, run: Run) -> str | None:
        return run.session_key or None

    def get_definition(self, run: Run) -> dict[str, Any] | None:
        return definitions.record(run)

    def get_interaction(self, run: Run) -> str:
        return inputs.interaction(run)

    def get_claim_key(self, run: Run) -> str | None:
        return run.claim_key or None

    def get_cost_usd(self, run: Run) -> str:
        return dollars(run.cost)

    def get_deadline_at(self, run: Run) -> str | None:
        return events.isoformat(run.deadline_at) if run.deadline_at else None

    def get_limits(self, run: Run) -> dict[str, int | str]:
        own = limits.of(run, run.version.shown() if run.version else run.agent.shown_spec)
        return {**asdict(own), "usd": dollars(own.usd)}

    def get_priority(self, run: Run) -> str:
        return Priority(run.priority).word

    def get_wait_reason(self, run: Run) -> str | None:
        return run.wait_reason or None

    def get_created_at(self, run: Run) -> str:
        return events.isoformat(run.created_at)

    def get_started_at(self, run: Run) -> str | None:
        return events.isoformat(run.started_at) if run.started_at else None

    def get_finished_at(self, run: Run) -> str | None:
        return events.isoformat(run.finished_at) if run.finished_at else None

    def get_cancel_requested_at(self, run: Run) -> str | None:
        return events.isoformat(run.cancel_requested_at) if run.cancel_requested_at else None


def dollars(amount: Decimal) -> str:
    return f"{amount:.6f}"


class WholeTask(Task):
    """With what costs a query, so that lists are without it."""

    pending_inputs = serializers.SerializerMethodField(help_text="How many messages wait for it to hear them.")

    class Meta(Task.Meta):
        fields = (*Task.Meta.fields, "pending_inputs")  # type: ignore[assignment]  # of another length

    def get_pending_inputs(self, run: Run) -> int:
        return inputs.pending_count(run)


class TaskFilter(filters.FilterSet):
    agentName = filters.CharFilter(field_name="agent__name")  # noqa: N815
    status = filters.ChoiceFilter(choices=[*Status.choices, ("cancelled", "cancelled")], method="by_status")
    priority = filters.ChoiceFilter(choices=[(p.word, p.word) for p in Priority], method="by_priority")

    def by_status(self, rows: QuerySet[Run], name: str, value: str) -> QuerySet[Run]:
        return rows.filter(status="canceled" if value == "cancelled" else value)

    def by_priority(self, rows: QuerySet[Run], name: str, value: str) -> QuerySet[Run]:
        return rows.filter(priority=Priority.named(value))


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


def visible(request: Request) -> QuerySet[Run]:
    """The caller's runs: of its workspace, and not deleted."""
    runs = Run.objects.filter(workspace=workspace_of(request), delete_requested_at=None)
    newest = Attempt.objects.filter(run=OuterRef("pk")).order_by("-number").values("number")[:1]
    return runs.select_related("agent").annotate(attempt_count=Coalesce(Subquery(newest), 0))


def agent_or_404(request: Request, name: str) -> Agent:
    agent = Agent.objects.filter(workspace=workspace_of(request), name=name).first()
    if agent is None:
        raise ApiError(404, "AGENT_NOT_FOUND", f"there is no agent {name!r}")
    return agent


def run_or_404(request: Request, run_id: str) -> Run:
    run = visible(request).filter(pk=run_id).first()
    if run is None:
        raise ApiError(404, "TASK_NOT_FOUND", f"there is no task {run_id!r}")
    return run


def number(request: Request, name: str, default: int, *, low: int, high: int) -> int:
    """A whole number from the query string. Raises ApiError."""
    text = request.query_params.get(name, str(default))
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise ApiError(400, "VALIDATION_ERROR", f"{name} is a whole number from {low} to {high}")
    return int(text)


def page_of(request: Request, rows: QuerySet[Row]) -> tuple[list[Row], str | None]:
    """The rows from `cursor` on, newest first, `limit` at most, and the next page's cursor. Raises ApiError."""
    limit = number(request, "limit", 20, low=1, high=200)
    if cursor := request.query_params.get("cursor"):
        rows = rows.filter(pk__lt=cursor)
    found = list(rows.order_by("-pk")[: limit + 1])
    page = found[:limit]
    return page, page[-1].pk if len(found) > limit else None


def seconds(asked: QueryDict, name: str, default: str) -> float:
    """How long the caller would wait, from the query string. Raises ApiError."""
    text = asked.get(name, default)
    if not SECONDS.fullmatch(text) or float(text) > LONGEST_WAIT:
        raise ApiError(400, "VALIDATION_ERROR", f"{name} is a number of seconds from 0 to {LONGEST_WAIT}")
    return float(text)


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
        raise ApiError(409, "AGENT_UNAVAILABLE", str(refusal)) from refusal
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


class Tasks(APIView):
    @extend_schema(
        parameters=[
            OpenApiParameter("agentName"),
            OpenApiParameter("status"),
            OpenApiParameter("priority"),
            OpenApiParameter("limit", int),
            OpenApiParameter("cursor", description="The id of the last task of the page before."),
        ],
        responses=inline_serializer(
            "TaskPage",
            {"tasks": Task(many=True), "next_cursor": serializers.CharField(allow_null=True)},
        ),
    )
    def get(self, request: Request) -> Response:
        """Tasks, newest first."""
        chosen = TaskFilter(request.query_params, queryset=visible(request))
        if not chosen.is_valid():
            raise serializers.ValidationError(chosen.errors)
        page, cursor = page_of(request, chosen.qs.prefetch_related("version", "agent__version"))
        return Response({"tasks": Task(page, many=True).data, "next_cursor": cursor})


class TaskDetail(APIView):
    @extend_schema(responses={200: inline_serializer("OneTask", {"task": WholeTask()}), 404: ERROR})
    def get(self, request: Request, run_id: str) -> Response:
        """One task, whole."""
        return Response({"task": WholeTask(run_or_404(request, run_id)).data})

    @extend_schema(
        parameters=[OpenApiParameter("force", bool, description="Cancel it first if it is active.")],
        responses={
            200: inline_serializer(
                "Deleted", {"deleted": serializers.BooleanField(), "taskId": serializers.CharField()}
            ),
            404: ERROR,
            409: ERROR,
        },
    )
    def delete(self, request: Request, run_id: str) -> Response:
        """Delete a task with everything that belongs to it."""
        run = run_or_404(request, run_id)
        force = request.query_params.get("force", "").lower() in {"1", "true", "yes"}
        try:
            queue.delete(run, force=force)
        except queue.StillActive as error:
            message = f"task {run.pk} is {run.status}: wait for its end, or add force=true to cancel it first"
            raise ApiError(409, "TASK_ACTIVE", message) from error
        return Response({"deleted": True, "taskId": run.pk})


class TaskEvents(APIView):
    @extend_schema(
        parameters=[OpenApiParameter("since", int), OpenApiParameter("limit", int)],
        responses={
            200: inline_serializer(
                "EventPage",
                {
                    "taskId": serializers.CharField(),
                    "events": inline_serializer(
                        "Event",
                        {
                            "id": serializers.IntegerField(),
                            "type": serializers.CharField(),
                            "data": serializers.JSONField(),
                            "created_at": serializers.DateTimeField(),
                        },
                        many=True,
                    ),
                },
            ),
            404: ERROR,
        },
    )
    def get(self, request: Request, run_id: str) -> Response:
        """Events with ids above `since`, in order."""
        run = run_or_404(request, run_id)
        since = number(request, "since", 0, low=0, high=2**62)
        limit = number(request, "limit", 500, low=1, high=5000)
        return Response({"taskId": run.pk, "events": events.fetch(run.pk, after=since, limit=limit)})


class TaskRespond(APIView):
    @extend_schema(request=Answer, responses={200: ACCEPTED, 400: ERROR, 404: ERROR})
    def post(self, request: Request, run_id: str) -> Response:
        """Answer a waiting task."""
        run = run_or_404(request, run_id)
        form = Answer(data=request.data)
        form.is_valid(raise_exception=True)
        try:
            queue.respond(run, form.validated_data["message"])
        except queue.NotWaiting as error:
            raise ApiError(400, "TASK_NOT_WAITING", f"task {run.pk} waits for no answer") from error
        return Response({"taskId": run.pk, "status": Status.PROCESSING})


class TaskCancel(APIView):
    @extend_schema(request=None, responses={200: ACCEPTED, 400: ERROR, 404: ERROR})
    def post(self, request: Request, run_id: str) -> Response:
        """Cancel a task that is not over."""
        run = run_or_404(request, run_id)
        try:
            queue.cancel(run)
        except queue.AlreadyOver as error:
            raise ApiError(400, "TASK_ALREADY_TERMINAL", f"task {run.pk} is over already") from error
        return Response({"taskId": run.pk, "status": Status.CANCELED})


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
