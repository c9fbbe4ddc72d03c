"""Say what you are doing: one line for people who watch."""

from __future__ import annotations

from pydantic import Field

from runs import signals
from runs.tools.base import Arguments, Desk, Result, Tool


class SetStatusArguments(Arguments):
    text: str = Field(description="What you are doing now, in a few words.", min_length=1, max_length=500)


def act(arguments: SetStatusArguments, desk: Desk) -> Result:
    signals.set_status(desk.attempt, arguments.text, redactor=desk.redactor)
    return Result("ok")


TOOL = Tool(
    name="set_status",
    description="Show the people who watch what you are doing now.",
    arguments=SetStatusArguments,
    act=act,
    in_sandbox=False,
)
