"""Messages to a task that has begun, and what became of them."""

from __future__ import annotations

from typing import Any

from drf_spectacular.utils import OpenApiParameter, extend_schema, inline_serializer
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from runs import events, inputs, queue
from runs.api.auth import workspace_of
from runs.api.bodies import LARGEST_INPUT, Strict, Text
from runs.api.errors import ApiError
from runs.api.lookups import run_or_404
from runs.api.schema import ERROR, KEY
from runs.api.starting import queue_full
from runs.models import InputMode, InputState, Run, RunInput, TriggerKind

SPELLINGS = [spelling for spelling in inputs.MODES if spelling]
MODE = {"choices": SPELLINGS, "required": False, "allow_blank": True, "default": ""}


class NewInput(Strict):
    message = Text(max_length=LARGEST_INPUT)
    mode = serializers.ChoiceField(**MODE)  # type: ignore[arg-type]
    queue_mode = serializers.ChoiceField(**MODE, help_text="Another name of `mode`.")  # type: ignore[arg-type]

    def validate(self, attrs: dict[str, Any]) -> dict[str, Any]:
        if attrs["mode"] and attrs["queue_mode"] and attrs["mode"] != attrs["queue_mode"]:
            raise serializers.ValidationError({"queue_mode": "it is another name of mode, and says something else"})
        return {"message": attrs["message"], "mode": inputs.MODES[attrs["mode"] or attrs["queue_mode"]]}


class InputRecord(serializers.ModelSerializer[RunInput]):
    """One input; the run it went to is in the context."""

    state = serializers.SerializerMethodField()
    outcome = serializers.ChoiceField(inputs.OUTCOMES)
    created_at = serializers.SerializerMethodField()
    delivered_at = serializers.SerializerMethodField()
    restarted = serializers.CharField(source="restarted_id", allow_null=True, help_text="The run that it started.")

    class Meta:
        model = RunInput
        fields = ("id", "mode", "message", "state", "outcome", "created_at", "delivered_at", "restarted")

    def get_state(self, sent: RunInput) -> str:
        return inputs.state_of(sent, self.context["run"])

    def get_created_at(self, sent: RunInput) -> str:
        return events.isoformat(sent.created_at)

    def get_delivered_at(self, sent: RunInput) -> str | None:
        return events.isoformat(sent.delivered_at) if sent.delivered_at else None


TAKEN = inline_serializer(
    "InputTaken",
    {
        "taskId": serializers.CharField(help_text="The task that hears it; a new one, if the outcome is restarted."),
        "status": serializers.CharField(),
        "inputId": serializers.IntegerField(),
        "outcome": serializers.ChoiceField(inputs.OUTCOMES),
        "mode": serializers.ChoiceField(InputMode.choices),
    },
)


class TaskInput(APIView):
    @extend_schema(
        request=NewInput,
        parameters=[KEY],
        responses={202: TAKEN, 200: TAKEN, 400: ERROR, 404: ERROR, 409: ERROR, 429: ERROR},
    )
    def post(self, request: Request, run_id: str) -> Response:
        """Say something to a task, whatever it does; if it is over, another goes on from where it ended."""
        run = run_or_404(request, run_id)
        form = NewInput(data=request.data)
        form.is_valid(raise_exception=True)
        try:
            sent, new = send(request, run, **form.validated_data)
        except queue.QueueFull as full:
            return queue_full(full)
        return Response(taken(request, sent), status=202 if new else 200)


def send(request: Request, run: Run, message: str, mode: InputMode) -> tuple[RunInput, bool]:
    """`inputs.send`, with its refusals as the API's. Raises ApiError, QueueFull."""
    key = request.headers.get("Idempotency-Key", "")[:255]
    try:
        return inputs.send(run, message, mode, trigger=TriggerKind.API, idempotency_key=key)
    except inputs.HearsNothing as error:
        text = f"task {run.pk} is a program that hears nothing while it runs"
        raise ApiError(400, "MODE_NOT_SUPPORTED", text) from error
    except queue.AgentRefuses as refusal:
        raise ApiError(409, refusal.code, str(refusal)) from refusal
    except queue.Coalesced as busy:
        raise ApiError(409, "CLAIM_KEY_BUSY", str(busy), {"taskId": busy.run_id}) from busy
    except queue.KeyReused as error:
        text = f"this Idempotency-Key belongs to another input, which task {error} heard"
        raise ApiError(409, "IDEMPOTENCY_KEY_REUSED", text) from error


def taken(request: Request, sent: RunInput) -> dict[str, Any]:
    hearer = inputs.hearer(sent)
    return {
        "taskId": hearer.pk,
        "status": Run.objects.values_list("status", flat=True).get(pk=hearer.pk, workspace=workspace_of(request)),
        "inputId": sent.pk,
        "outcome": sent.outcome,
        "mode": sent.mode,
    }


class TaskInputs(APIView):
    @extend_schema(
        parameters=[OpenApiParameter("pending", bool, description="Only those that nobody has heard yet.")],
        responses={200: inline_serializer("InputPage", {"inputs": InputRecord(many=True)}), 404: ERROR},
    )
    def get(self, request: Request, run_id: str) -> Response:
        """What was said to the task, in order."""
        run = run_or_404(request, run_id)
        rows = run.inputs.order_by("pk")
        if request.query_params.get("pending", "").lower() in {"1", "true", "yes"}:
            rows = rows.none() if run.terminal else rows.filter(state=InputState.PENDING)
        return Response({"inputs": InputRecord(rows, many=True, context={"run": run}).data})
