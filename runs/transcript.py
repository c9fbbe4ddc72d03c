"""The transcript of an attempt: append-only messages in one neutral form, whatever the provider.

    {"role": "user",      "parts": [{"type": "system"|"text", "text"}]}             what the run begins with
    {"role": "assistant", "parts": [text | thinking | tool_call…], "model", "usage", "stop", "lost_requests"}
    {"role": "tool",      "parts": [{"type": "tool_result", "id", "name", "text", "is_error"}]}

`extra` on a part is the provider's own (signatures, ids): kept whole and given back, never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NotRequired, TypedDict

from agents import storable
from agents.redaction import Redactor
from runs.models import Attempt, Message


class Part(TypedDict):
    type: Literal["system", "text", "thinking", "tool_call", "tool_result"]
    text: NotRequired[str]
    id: NotRequired[str]
    name: NotRequired[str]
    arguments: NotRequired[Any]  # an object; a string where the model's JSON did not parse
    is_error: NotRequired[bool]
    extra: NotRequired[dict[str, Any]]


class Usage(TypedDict):
    """Tokens of one request. `input` includes what was read from and written to the cache."""

    input: int
    output: int
    cache_read: int
    cache_write: int


class Body(TypedDict):
    role: Literal["user", "assistant", "tool"]
    parts: list[Part]
    model: NotRequired[str]
    usage: NotRequired[Usage]
    stop: NotRequired[str]
    lost_requests: NotRequired[int]  # the same, sent before it and broken off unanswered: spent, and not in `usage`


def load(attempt: Attempt) -> list[Body]:
    """All messages of the attempt, in order."""
    return list(Message.objects.filter(attempt=attempt).order_by("position").values_list("body", flat=True))


def append(attempt: Attempt, position: int, body: Body, *, redactor: Redactor) -> None:
    """Store `body` as entry `position`, inside a guarded transaction. A second try at one position is refused."""
    Message.objects.create(attempt=attempt, position=position, body=storable.json(redactor.json(body)))


def text(body: Body) -> str:
    """The words of a message, without its thinking and its tool calls."""
    return "".join(part.get("text", "") for part in body["parts"] if part["type"] == "text")


def tool_calls(body: Body) -> list[Part]:
    return [part for part in body["parts"] if part["type"] == "tool_call"]


def estimated_tokens(messages: Sequence[Body]) -> int:
    """A guess at what a request with these messages costs to send: four characters to a token."""
    return sum(len(str(body["parts"])) for body in messages) // 4
