"""What a run may spend, checked where it is spent: before each model request and each tool call."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from django.db.models import BigIntegerField, DecimalField, F
from django.db.models.functions import Coalesce

from agents import clock
from agents.spec import AgentSpec, Limits
from runs.models import Run

NO_LIMIT = 7 * 86_400  # seconds; what the sandbox's own watchdog has for a run without a limit of time


class Over(Exception):
    """The run has used up what it was given; it ends with this code."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def of(run: Run, spec: AgentSpec) -> Limits:
    """The run's limits: its own where it was given some, else the agent's."""
    own: dict[str, Any] = {
        "turns": run.max_turns,
        "wall_seconds": run.wall_seconds,
        "idle_seconds": run.idle_seconds,
        "tokens": run.token_budget,
        "usd": run.cost_budget,
        "output_bytes": run.output_limit,
    }
    return replace(spec.limits, **{name: value for name, value in own.items() if value is not None})


def deadline(run: Run, spec: AgentSpec, now: datetime) -> datetime | None:
    wall = run.wall_seconds if run.wall_seconds is not None else spec.limits.wall_seconds
    return now + timedelta(seconds=wall) if wall else None


def check_model_request(run: Run, spec: AgentSpec, *, priced: bool) -> None:
    """Raises Over. One request may overshoot a budget; the next is not made. `priced`: what it costs is known."""
    check_time(run)
    limits = of(run, spec)
    if 0 < limits.turns <= run.turns:
        raise Over("MAX_ITERATIONS", f"no answer after {limits.turns} model turns")
    check_budget(run, spec)
    if limits.usd and not priced:
        raise Over("PRICE_UNKNOWN", "the run has a budget in dollars, and nobody knows the price of its model")


def check_budget(run: Run, spec: AgentSpec) -> None:
    """Raises Over once the tokens or the dollars are used up."""
    limits = of(run, spec)
    if 0 < limits.tokens <= run.tokens:
        raise Over("BUDGET_EXCEEDED", f"{run.tokens} tokens used of {limits.tokens}")
    if 0 < limits.usd <= run.cost:
        raise Over("BUDGET_EXCEEDED", f"${run.cost:.4f} spent of ${limits.usd:.4f}")


def check_tool_call(run: Run, spec: AgentSpec) -> None:
    """Raises Over."""
    check_time(run)
    check_output(run, spec, run.output_bytes)


def check_output(run: Run, spec: AgentSpec, printed: int) -> None:
    """Whether a run may have printed that many bytes. Raises Over."""
    limit = of(run, spec).output_bytes
    if 0 < limit < printed:
        raise Over("OUTPUT_LIMIT", f"its commands printed more than {limit:,} bytes")


def check_time(run: Run) -> None:
    """Raises Over."""
    if run.deadline_at is not None and clock.now() >= run.deadline_at:
        raise timeout(run)


def seconds_left(run: Run) -> int:
    """What a command may have that has no limit of its own; at least 1."""
    if run.deadline_at is None:
        return NO_LIMIT
    return max(1, round((run.deadline_at - clock.now()).total_seconds()))


def timeout(run: Run) -> Over:
    return Over("TIMEOUT", f"not finished by {run.deadline_at:%Y-%m-%d %H:%M:%S} UTC, its limit of time")


def idle(run: Run, spec: AgentSpec) -> Over:
    seconds = of(run, spec).idle_seconds
    return Over("IDLE_TIMEOUT", f"neither the model nor a command said anything for {seconds} s")


def unanswered(requests: int) -> dict[str, Any]:
    """The columns of a run whose request is over: `requests` times its estimate was spent for no answer."""
    lost = Coalesce(F("open_request_tokens"), 0, output_field=BigIntegerField()) * requests
    dollars = Coalesce(F("open_request_cost"), 0, output_field=DecimalField()) * requests
    return {
        "input_tokens": F("input_tokens") + lost,
        "estimated_tokens": F("estimated_tokens") + lost,
        "cost": F("cost") + dollars,
        "open_request_tokens": None,
        "open_request_cost": None,
    }
