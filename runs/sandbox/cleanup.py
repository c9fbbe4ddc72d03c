"""Removing what an attempt left on the engine, and saying so in its row once that is verified."""

from __future__ import annotations

import logging

from runs.models import Attempt, SandboxState
from runs.sandbox.base import Engine, SandboxError, SandboxGone

log = logging.getLogger(__name__)

GRACE = 10  # seconds between TERM and KILL


def stop_and_remove(engine: Engine, attempt: Attempt) -> None:
    """TERM to its commands, time to end, then KILL and removal, verified. Raises SandboxError."""
    if attempt.sandbox_state in {SandboxState.NONE, SandboxState.GONE}:
        return
    try:
        sandbox = engine.find(attempt.sandbox_name)
        engine.stop_commands(sandbox, grace=GRACE)
    except SandboxGone:
        pass
    engine.remove(attempt.sandbox_name)


def clean_up(engine: Engine, attempt: Attempt) -> bool:
    """Remove sandbox and workspace of an attempt that is over. False: not now; the sweep tries again."""
    try:
        engine.remove(attempt.sandbox_name)
        engine.remove_workspace(attempt.sandbox_name)
    except SandboxError as error:
        log.warning("%s is not removed yet: %s", attempt.sandbox_name, error)
        return False
    standing = Attempt.objects.filter(pk=attempt.pk, has_workspace=True)
    standing.update(sandbox_state=SandboxState.GONE, has_workspace=False)
    return True
