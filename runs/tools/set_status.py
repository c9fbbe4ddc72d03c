"""Say what you are doing: one line for people who watch."""

from __future__ import annotations

from pydantic import Field

from runs.tools.base import Arguments, Hands, Result, Tool


class SetStatusArguments(Arguments):
    text: str = Field(description="What you are doing now, in a few words.", min_length=1, max_length=500)


def run(arguments: SetStatusArguments, hands: Hands) -> Result:
    return Result("ok", status_text=arguments.text)


TOOL = Tool(
    name="set_status",
    description="Show the people who watch what you are doing now.",
    arguments=SetStatusArguments,
    run=run,
    in_sandbox=False,
)
