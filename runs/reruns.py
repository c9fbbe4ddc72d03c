"""A run that says there is more to do is followed by another, for as long as its agent allows.

Only where a schedule or a person started it: an event is handled once, and a caller waits for one answer.
Source: spec/action-llama.md 8.4.
"""

from __future__ import annotations

from agents.spec import AgentSpec
from runs import intake, lifecycle
from runs.lifecycle import Cause
from runs.lineage import Runaway
from runs.models import Run, TriggerKind

MAY_FOLLOW = frozenset({TriggerKind.SCHEDULE, TriggerKind.MANUAL, TriggerKind.RERUN})
CARRIED_OVER = (
    *("input", "tags", "priority", "claim_key", "coalesce", "session_key", "max_turns", "wall_seconds"),
    *("token_budget", "idle_seconds", "cost_budget", "output_limit"),
)


def refusal(run: Run, spec: AgentSpec) -> str:
    """Why this run is not followed by another; empty if it may be."""
    if run.trigger not in MAY_FOLLOW:
        return f"a run started by {run.trigger} is not repeated"
    if run.rerun_number >= spec.max_reruns:
        return f"{spec.max_reruns} reruns are the most"
    return run.agent.refusal


def follow(run: Run, spec: AgentSpec) -> Run | None:
    """The next run, in the transaction that finishes this one; None if it may not be.

    One too many of what its root has set off is a dead letter.
    """
    if refusal(run, spec):
        return None
    number = run.rerun_number + 1
    cause = Cause(TriggerKind.RERUN, {**run.trigger_context, "rerun": number, "of": spec.max_reruns}, run.pk)
    fields = {name: getattr(run, name) for name in CARRIED_OVER}
    try:
        return lifecycle.create(run.agent, cause, rerun_of=run, rerun_number=number, **fields)
    except Runaway as stopped:
        intake.keep(run.agent, cause, run.input, code=stopped.code, reason=str(stopped))
        return None
