"""Ask for another run after this one: there is more to do than one run should."""

from __future__ import annotations

from runs.tools.base import Arguments, Hands, Result, Tool


class RerunArguments(Arguments):
    pass


def run(arguments: RerunArguments, hands: Hands) -> Result:
    return Result("Noted: when this run is done, another is started, if its kind of run may be repeated.", rerun=True)


TOOL = Tool(
    name="rerun",
    description="Say that there is more work than this run should do: when it ends, another run is started.",
    arguments=RerunArguments,
    run=run,
    in_sandbox=False,
)
