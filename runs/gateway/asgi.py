"""HTTP without a framework: a request's JSON in, a status and JSON out. Most requests are locks, and they are many."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any
from urllib.parse import parse_qsl, unquote

from runs.gateway.requests import Bad, Handler, Request
from runs.lock_table import Answer

log = logging.getLogger(__name__)

LARGEST = 1024 * 1024  # bytes of a body
HEARD_OUT = 16 * LARGEST  # bytes of one that is too large: who still sends does not hear an answer
BODY_WITHIN = 30.0  # seconds

TOO_LARGE = Answer(413, {"error": "payload too large"})
NOT_JSON = Answer(400, {"error": "invalid JSON body"})
TOO_SLOW = Answer(408, {"error": "the body did not come"})
NOT_FOUND = Answer(404, {"error": "not found"})
FAILED = Answer(500, {"error": "internal error"})

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class App:
    """`routes`: method and path → what answers. A path that ends in `/` stands for those with one word more."""

    def __init__(self, routes: Mapping[tuple[str, str], Handler]) -> None:
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = await self._answer(scope, receive)
        body = json.dumps(answer.body, separators=(",", ":")).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": answer.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        handler, word = self._find(scope["method"], scope["raw_path"])
        if handler is None:
            return NOT_FOUND
        try:
            body = None if scope["method"] == "GET" else _parsed(await _read(scope, receive))
            query = dict(parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True))
            return await handler(Request(body or {}, query, _bearer(scope), word))
        except Bad as bad:
            return bad.answer
        except Exception:
            log.exception("%s %s", scope["method"], scope["path"])  # the query, with a secret, is no part of it
            return FAILED

    def _find(self, method: str, raw_path: bytes) -> tuple[Handler | None, str]:
        path = raw_path.decode("latin-1")
        folder, _, word = path.rpartition("/")
        if not word:
            return None, ""
        return self._routes.get((method, path)) or self._routes.get((method, f"{folder}/")), unquote(word)


def _bearer(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"authorization":
            scheme, _, token = value.decode("latin-1").partition(" ")
            return token.strip() if scheme.lower() == "bearer" else ""
    return ""


async def _read(scope: Scope, receive: Receive) -> bytes:
    """The body. Raises Bad."""
    chunks: list[bytes] = []
    size, more = 0, True
    try:
        async with asyncio.timeout(BODY_WITHIN):
            while more and size <= HEARD_OUT:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise Bad(NOT_JSON)
                chunk, more = message.get("body", b""), message.get("more_body", False)
                size += len(chunk)
                chunks = [] if size > LARGEST else [*chunks, chunk]
    except TimeoutError as error:
        raise Bad(TOO_SLOW) from error
    if size > LARGEST:
        raise Bad(TOO_LARGE)
    return b"".join(chunks)


def _parsed(body: bytes) -> dict[str, Any]:
    """The JSON object in it. Raises Bad."""
    try:
        value = json.loads(body.decode())
    except (ValueError, RecursionError) as error:
        raise Bad(NOT_JSON) from error
    if not isinstance(value, dict):
        raise Bad(NOT_JSON)
    return value
