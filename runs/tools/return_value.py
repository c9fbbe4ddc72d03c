"""Give the run's caller a value: the answer that a program wants, beside the words that a person reads."""

from __future__ import annotations

from pydantic import Field

from runs import signals
from runs.tools.base import Arguments, Desk, Result, Tool


class ReturnValueArguments(Arguments):
    value: str = Field(description="What the caller gets. The last one given counts.")


def act(arguments: ReturnValueArguments, desk: Desk) -> Result:
    signals.return_value(desk.attempt, arguments.value, redactor=desk.redactor)
    return Result("ok")


TOOL = Tool(
    name="return_value",
    description="Set the value that whoever called this run gets when it has finished.",
    arguments=ReturnValueArguments,
    act=act,
    in_sandbox=False,
)
