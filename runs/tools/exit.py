"""Say how this run is to end: as done, as done with more to do, or as failed for a reason with a number."""

from __future__ import annotations

from pydantic import Field

from runs import signals
from runs.tools.base import Arguments, Desk, Result, Tool


class ExitArguments(Arguments):
    code: int = Field(
        default=signals.UNRECOVERABLE,
        ge=0,
        le=255,
        description=(
            "0 done, 42 done and more to do, 10 authentication failure, 11 permission denied, 12 rate limited, "
            "13 invalid configuration, 14 missing dependency or service, 15 unrecoverable, 16 aborted by a user."
        ),
    )


def act(arguments: ExitArguments, desk: Desk) -> Result:
    signals.exit(desk.attempt, arguments.code, redactor=desk.redactor)
    return Result(f"Noted: the run ends with exit code {arguments.code} when you stop. Say what happened, and stop.")


TOOL = Tool(
    name="exit",
    description="Say with which exit code this run ends, for one that cannot do its work. Then stop.",
    arguments=ExitArguments,
    act=act,
    in_sandbox=False,
)
