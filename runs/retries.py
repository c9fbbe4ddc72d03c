"""Whether a run that failed gets another attempt, and when.

An attempt may have had effects once a tool call of it was started; then nobody starts over by himself, unless the
agent says `retry = "always"`. What a run spends counts over all its attempts.
"""

from __future__ import annotations

import random
from datetime import timedelta

from agents.spec import AgentSpec, Failure
from runs.models import Attempt, Run, ToolCall

KINDS: dict[str, Failure] = {
    "SANDBOX_LOST": "machinery",
    "SANDBOX_ERROR": "machinery",
    "ENGINE_DOWN": "machinery",
    "TIMEOUT": "timeout",
    "IDLE_TIMEOUT": "timeout",
    "MODEL_UNAVAILABLE": "model",
    "MODEL_ERROR": "model",
    "MODEL_REFUSED": "model",
}

SETUP = frozenset({"PREFLIGHT_FAILED", "HOOK_FAILED"})


def kind_of(code: str) -> Failure | None:
    """Whose failure a code is; None for those that another attempt would only repeat."""
    return "work" if code.startswith("EXIT_") or code in SETUP else KINDS.get(code)


def delay(run: Run, spec: AgentSpec, attempt: Attempt, code: str) -> timedelta | None:
    """How long until the next attempt; None: there is none."""
    policy = spec.attempts
    if kind_of(code) == "timeout" and (run.wall_seconds is not None or run.idle_seconds is not None):
        return None  # its caller said how long it may take, and waits no longer
    if spec.retry == "never" or attempt.number >= policy.most or kind_of(code) not in policy.after:
        return None
    if spec.retry == "safe" and may_have_had_effects(attempt):
        return None
    seconds = min(policy.longest_delay_seconds, policy.delay_seconds * 2 ** min(attempt.number - 1, 30))
    return timedelta(seconds=seconds * random.uniform(0.8, 1.2))  # noqa: S311 - jitter


def may_have_had_effects(attempt: Attempt) -> bool:
    return ToolCall.objects.filter(attempt=attempt, started_at__isnull=False).exists()
