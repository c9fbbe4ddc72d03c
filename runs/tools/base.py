"""What every tool is: a schema beside a function, and hands to act with."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from agents import storable
from agents.redaction import Redactor
from agents.spec import AgentSpec
from runs.llm.base import ToolSchema
from runs.models import Attempt, Run, ToolCall, WaitReason
from runs.sandbox.base import Ending

RESULT_LINES = 2000  # of a result, at most these reach the model: the head and the tail
RESULT_CHARACTERS = 50_000


class ToolFailed(Exception):
    """The work's failure, told to the model in these words."""


class Asks(Exception):
    """The tool's answer is a person's: park the run with this question."""

    def __init__(self, question: str) -> None:
        super().__init__(question)
        self.question = question


@dataclass(frozen=True)
class Result:
    """What the model is told. Commands print anything: what no database can hold is replaced in `text`."""

    text: str
    is_error: bool = False
    exit_code: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", storable.text(self.text))


@dataclass(frozen=True)
class Park:
    """The result is not there yet: the run waits for it without a slot, and then the tool acts again."""

    reason: WaitReason
    wake_at: datetime


@dataclass(frozen=True)
class Finished:
    """A command that ended. `text` of a live one is cut to RESULT_CHARACTERS as `shorten` does; else all of `raw`."""

    text: str
    raw: bytes
    ending: Ending
    exit_code: int | None


class Hands(Protocol):
    """The sandbox, as a tool of one call sees it. Each use is a command that runs at most once."""

    def exec(self, argv: Sequence[str], *, stdin: bytes = b"", timeout: int = 60, live: bool = False) -> Finished:
        """Run `argv` in /workspace; with `live`, its output becomes events as it comes.

        A tool that is run again after a crash must make the same calls in the same order: those that have
        begun are followed, not repeated.
        """


@dataclass(frozen=True, kw_only=True)
class Desk:
    """What a tool that acts in the worker acts for, and what keeps secrets out of what it stores."""

    run: Run
    attempt: Attempt
    spec: AgentSpec
    call: ToolCall
    redactor: Redactor


class Arguments(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _no_such_way(arguments: Any, hands: Hands) -> Result:
    raise ToolFailed("this tool does nothing in the sandbox")


@dataclass(frozen=True, kw_only=True)
class Tool:
    name: str
    description: str
    arguments: type[Arguments]
    run: Callable[[Any, Hands], Result] = _no_such_way
    # In the worker, for a tool that is not `in_sandbox`: what it writes and the call's end are one transaction, so it
    # happens once, or not at all if it raises ToolFailed. It waits for nothing and asks only the database.
    act: Callable[[Any, Desk], Result | Park] | None = None
    in_sandbox: bool = True
    risky: bool = False  # it changes what is there: the agent may have to ask first. Only for tools of the sandbox

    @cached_property  # twenty times as long to make as to send
    def schema(self) -> ToolSchema:
        schema = self.arguments.model_json_schema()
        schema.pop("title", None)
        for field in schema.get("properties", {}).values():
            field.pop("title", None)
        return ToolSchema(self.name, self.description, schema)

    def parse(self, arguments: Any) -> Arguments:
        """Raises ToolFailed with what is wrong, field by field."""
        if not isinstance(arguments, dict):
            raise ToolFailed(f"the arguments of {self.name} are not a JSON object: {str(arguments)[:500]}")
        if storable.json(arguments) != arguments:
            raise ToolFailed(f"{self.name}: NUL, halves of characters and NaN are not allowed in arguments")
        try:
            return self.arguments.model_validate(arguments)
        except ValidationError as error:
            faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
            takes = ", ".join(self.arguments.model_fields)
            raise ToolFailed(f"{self.name}: {faults} (it takes {takes})") from error


def shorten(text: str, *, lines: int = RESULT_LINES, characters: int = RESULT_CHARACTERS) -> str:
    """`text`, or its head and its tail with a note of what is missing between them."""
    head = tail = len(text)
    ends = [end.end() for end in re.finditer("\n|(?<=[^\n])\\Z", text)]
    if len(ends) > lines:
        half = lines // 2
        head, tail = ends[half - 1], len(text) - ends[-half - 1]
    elif len(text) <= characters:
        return text
    if head + tail > characters:
        head, tail = min(head, characters // 2), min(tail, characters // 2)
    missing = len(text) - head - tail
    return f"{text[:head]}\n[… {missing} characters left out …]\n{text[len(text) - tail :]}"
