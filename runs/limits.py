"""What a run may spend, checked where it is spent: before each model request and each tool call."""

from __future__ import annotations

from typing import Any

from django.db.models import BigIntegerField, F
from django.db.models.functions import Coalesce

from agents import clock
from agents.spec import AgentSpec
from runs.models import Run


class Over(Exception):
    """The run has used up what it was given; it ends with this code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def check_time(run: Run) -> None:
    """Raises Over."""
    if run.deadline_at is not None and clock.now() >= run.deadline_at:
        raise timeout(run)


def check_model_request(run: Run, spec: AgentSpec) -> None:
    """Raises Over. One request may overshoot a budget; the next is not made."""
    check_time(run)
    turns = run.max_turns if run.max_turns is not None else spec.limits.turns
    if 0 < turns <= run.turns:
        raise Over("MAX_ITERATIONS", f"no answer after {turns} model turns")
    budget = run.token_budget if run.token_budget is not None else spec.limits.tokens
    if 0 < budget <= run.tokens:
        raise Over("BUDGET_EXCEEDED", f"{run.tokens} tokens used of {budget}")


def timeout(run: Run) -> Over:
    return Over("TIMEOUT", f"not finished by {run.deadline_at:%Y-%m-%d %H:%M:%S} UTC, its limit of time")


def unanswered(requests: int) -> dict[str, Any]:
    """The columns of a run whose request is over: `requests` times its estimate was spent for no answer."""
    lost = Coalesce(F("open_request_tokens"), 0, output_field=BigIntegerField()) * requests
    return {
        "input_tokens": F("input_tokens") + lost,
        "estimated_tokens": F("estimated_tokens") + lost,
        "open_request_tokens": None,
    }
