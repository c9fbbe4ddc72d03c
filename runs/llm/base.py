"""What the engine and the model providers agree on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from agents.spec import ModelSpec
from runs.transcript import Body


class ModelError(Exception):
    """The request cannot succeed, however often it is asked: key, permission, size, or the request itself.

    `lost_requests`: how many were sent before this one and broke off; see `Body`.
    """

    def __init__(self, message: str, *, code: str = "MODEL_ERROR", lost_requests: int = 0) -> None:
        super().__init__(message)
        self.code = code
        self.lost_requests = lost_requests


class ModelUnavailable(Exception):
    """The provider does not answer now and may later. `retry_after`: seconds, where it said so.

    `lost_requests`: how many were sent, this one too, and broke off instead of being refused; see `Body`.
    """

    def __init__(self, message: str, *, retry_after: float | None = None, lost_requests: int = 0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        self.lost_requests = lost_requests


@dataclass(frozen=True)
class ToolSchema:
    """A tool as a model is told of it; `parameters` is a JSON schema of an object."""

    name: str
    description: str
    parameters: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Request:
    model: ModelSpec
    messages: Sequence[Body]
    tools: Sequence[ToolSchema] = ()
    read_file: Callable[[str], bytes | None] = field(default=lambda path: None)  # of the agent's own folder
    progressed: Callable[[], None] = field(default=lambda: None)  # called with every piece of the answer
