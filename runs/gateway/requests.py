"""A request as a route sees it: its fields, looked at one by one in the contract's order."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from runs import attempt_keys
from runs.lock_table import Answer


class Bad(Exception):
    """There is nothing more to do than to give this answer."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


def bad_request(sentence: str) -> Bad:
    return Bad(Answer(400, {"error": sentence}))


@dataclass(frozen=True)
class Request:
    """`word`: the last of the path, where that is part of the question."""

    body: Mapping[str, Any] = field(repr=False)
    query: Mapping[str, str] = field(repr=False)
    bearer: str = field(repr=False)
    word: str = ""

    def digest(self) -> str:
        """Of the secret that was shown: in the body, the query or the header. Raises Bad."""
        shown = self.body.get("secret") or self.query.get("secret") or self.bearer
        if not isinstance(shown, str) or not shown:
            raise bad_request("missing secret")
        return attempt_keys.digest(shown)

    def text(self, name: str, *, may_be_empty: bool = False) -> str:
        """Raises Bad."""
        value = self.body.get(name)
        if not isinstance(value, str) or not (value or may_be_empty):
            raise bad_request(f"missing {name}")
        return value

    def seconds(self, name: str) -> float | None:
        """A length of time; None, where there is none or it is 0. Raises Bad."""
        value = self.body.get(name)
        if value is None or (value == 0 and not isinstance(value, bool)):
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
            raise bad_request(f"invalid {name}")
        return float(min(value, 2**53))

    def exit_code(self, name: str) -> int:
        """Raises Bad."""
        value = self.body.get(name)
        if value is None:
            raise bad_request(f"missing {name}")
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= 255:
            raise bad_request(f"invalid {name}")
        return value

    def wait(self, longest: float) -> float:
        """Seconds to wait, from the query. Raises Bad."""
        try:
            seconds = float(self.query.get("wait") or 0)
        except ValueError as error:
            raise bad_request("invalid wait") from error
        return min(max(0.0, seconds), longest) if math.isfinite(seconds) else longest


Handler = Callable[[Request], Awaitable[Answer]]
