"""One port: websockets, event streams and waiting on asyncio, everything else on WSGI threads.

Under plain ASGI Django runs a process's synchronous views one at a time: a third of the webhooks a second.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentfleet.settings")
django.setup()

from channels.auth import AuthMiddlewareStack  # noqa: E402 - Django must be set up first
from channels.routing import URLRouter  # noqa: E402
from django.conf import settings  # noqa: E402
from django.core.exceptions import SuspiciousOperation  # noqa: E402
from django.core.handlers.asgi import ASGIHandler  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402
from django.http import QueryDict  # noqa: E402

import agentfleet.celery  # noqa: E402, F401 - doorbells need the application
from agentfleet.sockets import SameOrigin, sockets  # noqa: E402
from agentfleet.threads import OnThreads, Scope, Send  # noqa: E402
from runs import stream  # noqa: E402
from runs.api.errors import ApiError  # noqa: E402
from runs.api.lookups import seconds  # noqa: E402
from runs.api.wait import UNLESS_TOLD  # noqa: E402

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

PROBES = frozenset({"/healthz", "/readyz"})
STREAMED = re.compile(r"^/api/v1/tasks/[^/]+/stream/?$")
# Requests that may wait for a run: the parameter that says how many seconds, and what it is unless told.
PATIENT = (
    (re.compile(r"/api/v1/tasks/[^/]+/wait"), "timeout", UNLESS_TOLD),
    (re.compile(r"/api/v1/agents/[^/]+/run"), "wait", "0"),
)
WEBHOOK_LIMIT = 10 * 1024 * 1024  # bytes of body
LIMIT = 32 * 1024 * 1024
BODY_WITHIN = 30.0  # seconds for all of it: a request that drips holds no thread


class Streaming(ASGIHandler):
    """Django's own gives every request a thread for its synchronous parts, and a stream keeps that for hours."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.handle(scope, receive, send)


_streaming: Any = Streaming()
_wsgi = get_wsgi_application()
_threads = OnThreads(_wsgi, threads=settings.WEB_THREADS)
_probes = OnThreads(_wsgi, threads=2)  # of their own: what holds up all others must not hold up who asks about it
_sockets = SameOrigin(AuthMiddlewareStack(URLRouter(sockets)))


class Refused(Exception):
    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


async def application(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] == "websocket":
        await _sockets(scope, receive, send)
    elif scope["type"] == "http":
        await _http(scope, receive, send)


async def _http(scope: Scope, receive: Receive, send: Send) -> None:
    if STREAMED.match(scope["path"]):
        await _streaming(scope, receive, send)
        return
    try:
        body = await asyncio.wait_for(_whole_body(scope, receive), BODY_WITHIN)
    except TimeoutError:
        await _refuse(send, 408, _too_slow(scope))
    except Refused as refused:
        await _refuse(send, refused.status, refused.body)
    else:
        if body is None:
            return
        scope = _with_length(scope, len(body))
        if within := _patience(scope):
            await _answer_patiently(scope, body, receive, send, within)
        else:
            await (_probes if scope["path"] in PROBES else _threads)(scope, body, send)


def _patience(scope: Scope) -> float:
    """Seconds this request may wait for its run; 0 where the plain answer is all there is, also if it is a fault."""
    for path, parameter, unless_told in PATIENT:
        if path.fullmatch(scope["path"]):
            with suppress(ApiError, SuspiciousOperation):
                return seconds(QueryDict(scope["query_string"]), parameter, unless_told)
    return 0.0


async def _answer_patiently(scope: Scope, body: bytes, receive: Receive, send: Send, within: float) -> None:
    """The plain answer; where it tells of a run that goes on, that of `tasks/{id}/wait` once the run has settled."""
    answer = await _asked(scope, body)
    run_id = _going_on(answer)
    if run_id:
        try:
            if not await _settled(run_id, within, receive):
                return
            answer = await _asked_again(scope, run_id, before=answer)
        except asyncio.CancelledError:  # the server stops: whoever waits here asks the next one
            answer = _accepted(answer)
    for message in answer:
        await send(message)


def _going_on(answer: list[Message]) -> str:
    """The run that the answer is about and that has not settled."""
    if answer[0]["status"] not in {200, 202}:
        return ""
    told = json.loads(answer[1]["body"])
    return "" if "task" in told else str(told.get("taskId", ""))


async def _settled(run_id: str, within: float, receive: Receive) -> bool:
    """Wait until the run has settled or the time is over. False: the client went away before that."""
    gone = asyncio.ensure_future(_gone(receive))
    settled = asyncio.ensure_future(stream.until_settled(run_id, within=within))
    try:
        await asyncio.wait((gone, settled), return_when=asyncio.FIRST_COMPLETED)
        return not gone.done()
    finally:
        gone.cancel()
        settled.cancel()


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _asked(scope: Scope, body: bytes) -> list[Message]:
    """What the threads answer, kept instead of sent: start and body."""
    kept: list[Message] = []

    async def keep(message: Message) -> None:
        kept.append(message)

    await _threads(scope, body, keep)
    return kept


async def _asked_again(scope: Scope, run_id: str, *, before: list[Message]) -> list[Message]:
    """What became of the run; where the server cannot say just now, what it said before."""
    question = {**scope, "method": "GET", "path": f"/api/v1/tasks/{run_id}/wait", "query_string": b""}
    answer = await _asked(_with_length(question, 0), b"")
    return answer if answer[0]["status"] < 500 else _accepted(before)


def _accepted(answer: list[Message]) -> list[Message]:
    return [{**answer[0], "status": 202}, *answer[1:]]


async def _whole_body(scope: Scope, receive: Receive) -> bytes | None:
    """All of the body before a thread is spent on it; None if the client went away. Raises Refused."""
    webhook = scope["path"].startswith("/webhooks/")
    limit = WEBHOOK_LIMIT if webhook else LIMIT
    too_large = Refused(
        413,
        {"error": "payload too large"} if webhook else _error("PAYLOAD_TOO_LARGE", f"at most {limit} bytes"),
    )
    if not scope["query_string"].isascii():
        raise Refused(400, _error("VALIDATION_ERROR", "the query string is not ASCII: percent-encode it"))
    declared = dict(scope["headers"]).get(b"content-length", b"0")
    if declared.isdigit() and int(declared) > limit:
        raise too_large
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > limit:
            raise too_large
        if not message.get("more_body"):
            return bytes(body)


def _too_slow(scope: Scope) -> dict[str, Any]:
    if scope["path"].startswith("/webhooks/"):
        return {"error": "failed to read request body"}
    return _error("REQUEST_TIMEOUT", f"the body did not arrive within {BODY_WITHIN:.0f} s")


def _with_length(scope: Scope, length: int) -> Scope:
    """A chunked body has no length, and WSGI takes one without for empty."""
    headers = [(name, value) for name, value in scope["headers"] if name != b"content-length"]
    return {**scope, "headers": [*headers, (b"content-length", str(length).encode())]}


def _error(code: str, message: str) -> dict[str, Any]:
    return {"error": {"code": code, "message": message}}


async def _refuse(send: Send, status: int, body: dict[str, Any]) -> None:
    payload = json.dumps(body).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(payload)).encode()),
        (b"connection", b"close"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": payload})
