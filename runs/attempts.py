"""Attempts at a run: one is open from the claim, or a retry, until it has failed or the run is over."""

from __future__ import annotations

from typing import Any

from agents import clock
from runs import attempt_keys, locks
from runs.models import Attempt, CallState, ToolCall


def begin(run_id: str, number: int, host_id: str) -> None:
    digest = attempt_keys.digest(attempt_keys.secret(run_id, number))
    Attempt.objects.create(run_id=run_id, number=number, host_id=host_id, gateway_digest=digest)


def close(run_id: str, error: dict[str, Any] | None = None) -> None:
    """No attempt outlives its run; a call still under way may have had effects, and nobody will know."""
    Attempt.objects.filter(run_id=run_id, ended_at=None).update(ended_at=clock.now(), error=error)
    ToolCall.objects.filter(attempt__run_id=run_id, state=CallState.STARTED).update(state=CallState.LOST)
    locks.release_all(run_id)
