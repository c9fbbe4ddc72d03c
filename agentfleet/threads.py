"""A WSGI application behind the asyncio server: a thread a request, and the answer handed back in one piece.

The environment is a2wsgi's. Its own responder sends piece by piece and crosses between loop and thread some eight
times a request; on a busy machine each crossing waits for a turn, and a webhook's answer with them.
"""

from __future__ import annotations

import asyncio
import contextvars
import io
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from a2wsgi.wsgi import build_environ

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes


class OnThreads:
    """For answers that fit into memory; streams do not come here."""

    def __init__(self, app: Callable[..., Iterable[bytes]], *, threads: int) -> None:
        self._app = app
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="wsgi")

    async def __call__(self, scope: Scope, body: bytes, send: Send) -> None:
        environ: Any = build_environ(scope, io.BytesIO(body))  # type: ignore[arg-type]
        here = contextvars.copy_context()
        ask = partial(here.run, self._answer, environ)
        answer = await asyncio.get_running_loop().run_in_executor(self._pool, ask)
        await send({"type": "http.response.start", "status": answer.status, "headers": answer.headers})
        await send({"type": "http.response.body", "body": answer.body})

    def _answer(self, environ: dict[str, Any]) -> Answer:
        head: list[tuple[str, list[tuple[str, str]]]] = []
        written: list[bytes] = []

        def start_response(status: str, headers: list[tuple[str, str]], _: Any = None) -> Callable[[bytes], None]:
            head[:] = [(status, headers)]
            return written.append

        chunks = self._app(environ, start_response)
        try:
            written.extend(chunks)
        finally:
            getattr(chunks, "close", lambda: None)()
        status, headers = head[0]
        return Answer(
            int(status.split(" ", 1)[0]),
            [(name.strip().lower().encode("latin1"), value.strip().encode("latin1")) for name, value in headers],
            b"".join(written),
        )
