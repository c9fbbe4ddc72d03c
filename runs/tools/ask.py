"""Ask a person, and wait for the answer without a thread, a slot or a cent."""

from __future__ import annotations

from pydantic import Field

from runs.tools.base import Arguments, Asks, Hands, Result, Tool


class AskArguments(Arguments):
    question: str = Field(description="What you need to know, in full: the reader sees nothing else.", min_length=1)


def run(arguments: AskArguments, hands: Hands) -> Result:
    raise Asks(arguments.question)


TOOL = Tool(
    name="ask",
    description="Ask the people in charge a question and wait for their answer, for days if need be.",
    arguments=AskArguments,
    run=run,
    in_sandbox=False,
)
