"""Ask for another run after this one: there is more to do than one run should."""

from __future__ import annotations

from runs import signals
from runs.tools.base import Arguments, Desk, Result, Tool


class RerunArguments(Arguments):
    pass


def act(arguments: RerunArguments, desk: Desk) -> Result:
    signals.rerun(desk.attempt, redactor=desk.redactor)
    return Result("Noted: when this run is done, another is started, if its kind of run may be repeated.")


TOOL = Tool(
    name="rerun",
    description="Say that there is more work than this run should do: when it ends, another run is started.",
    arguments=RerunArguments,
    act=act,
    in_sandbox=False,
)
