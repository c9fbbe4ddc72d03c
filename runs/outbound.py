"""Requests to addresses of others, on the process's one loop. Nothing of an answer is read but its status."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

from runs import loop

if TYPE_CHECKING:
    import ssl


@dataclass(frozen=True)
class Answer:
    """What came of a request: a status, or 0 and what went wrong. Never the address, which may be a secret."""

    status: int = 0
    failure: str = ""

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300

    def __str__(self) -> str:
        return f"HTTP {self.status}" if self.status else self.failure


def submit(
    method: str, url: str, *, content: bytes | None = None, headers: Mapping[str, str] | None = None, within: float
) -> Future[Answer]:
    """Ask, for at most `within` seconds in all, and follow no redirect."""
    return loop.submit(_answer(method, url, content=content, headers=headers or {}, within=within))


async def _answer(method: str, url: str, *, content: bytes | None, headers: Mapping[str, str], within: float) -> Answer:
    import httpx  # noqa: PLC0415 - a tenth of every web's start, for those who have an address

    try:
        async with (
            asyncio.timeout(within),
            httpx.AsyncClient(timeout=within, verify=_trust()) as client,
            client.stream(method, url, content=content, headers=dict(headers)) as answer,
        ):
            return Answer(answer.status_code)
    except (httpx.HTTPError, httpx.InvalidURL, TimeoutError, OSError, ValueError) as error:
        return Answer(failure=type(error).__name__)


@lru_cache(maxsize=1)
def _trust() -> ssl.SSLContext:
    """One for all: reading the certificates takes longer than a request, and this is everybody's loop."""
    import httpx  # noqa: PLC0415 - as above

    return httpx.create_ssl_context()
