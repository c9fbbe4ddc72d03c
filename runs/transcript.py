"""The transcript of an attempt: append-only messages in one neutral form, whatever the provider.

    {"role": "user",      "parts": [{"type": "system"|"text", "text"}]}             what the run begins with
    {"role": "assistant", "parts": [text | thinking | tool_call…], "model", "usage", "stop", "lost_requests"}
    {"role": "tool",      "parts": [{"type": "tool_result", "id", "name", "text", "is_error"}]}

`extra` on a part is the provider's own (signatures, ids): kept whole and given back, never read.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NotRequired, TypedDict, cast

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


class Corrupt(Exception):
    """What is stored of a run cannot be read; somebody, or some disk, has changed it. The run cannot go on."""

    code = "CORRUPT"


# What nobody can do without, in each kind of part.
TEXTS = {
    "system": ("text",),
    "text": ("text",),
    "thinking": ("text",),
    "tool_call": ("id", "name"),
    "tool_result": ("id", "name", "text"),
}


def load(attempt: Attempt) -> list[Body]:
    """All messages of the attempt, in order. Raises Corrupt."""
    rows = Message.objects.filter(attempt=attempt).order_by("position").values_list("position", "body")
    return [checked(body, position, number) for number, (position, body) in enumerate(rows)]


def checked(body: Any, position: int, number: int) -> Body:
    """`body`, if it is a message and the one that stands there. Raises Corrupt."""
    if position != number:
        raise Corrupt(f"message {number} of the transcript is missing")
    parts = body.get("parts") if isinstance(body, dict) else None
    if not isinstance(parts, list) or body.get("role") not in {"user", "assistant", "tool"}:
        raise Corrupt(f"message {number} of the transcript is none: {str(body)[:200]}")
    for part in parts:
        if not is_part(part):
            raise Corrupt(f"message {number} of the transcript has a part that is none: {str(part)[:200]}")
    return cast("Body", body)


def is_part(part: Any) -> bool:
    texts = TEXTS.get(str(part.get("type"))) if isinstance(part, dict) else None
    if texts is None or not all(isinstance(part.get(name), str) for name in texts):
        return False
    return part["type"] != "tool_call" or "arguments" in part


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
