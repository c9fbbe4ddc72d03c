"""A run as the API shows it: a task."""

from __future__ import annotations

from dataclasses import asdict
from decimal import Decimal
from typing import Any

from rest_framework import serializers

from agents.models import Priority
from runs import definitions, events, inputs, limits
from runs.models import Run


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


class WholeTask(Task):
    """With what costs a query, so that lists are without it."""

    pending_inputs = serializers.SerializerMethodField(help_text="How many messages wait for it to hear them.")

    class Meta(Task.Meta):
        fields = (*Task.Meta.fields, "pending_inputs")  # type: ignore[assignment]  # of another length

    def get_pending_inputs(self, run: Run) -> int:
        return inputs.pending_count(run)


def dollars(amount: Decimal) -> str:
    return f"{amount:.6f}"
