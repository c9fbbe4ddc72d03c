"""One port: websockets and event streams on asyncio, everything else on WSGI threads.

Under plain ASGI Django runs a process's synchronous views one at a time: a third of the webhooks a second.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import django

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentfleet.settings")
django.setup()

from channels.auth import AuthMiddlewareStack  # noqa: E402 - Django must be set up first
from channels.routing import URLRouter  # noqa: E402
from django.conf import settings  # noqa: E402
from django.core.asgi import get_asgi_application  # noqa: E402
from django.core.wsgi import get_wsgi_application  # noqa: E402

import agentfleet.celery  # noqa: E402, F401 - doorbells need the application
from agentfleet.sockets import SameOrigin, sockets  # noqa: E402
from agentfleet.threads import OnThreads, Scope, Send  # noqa: E402

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

STREAMED = re.compile(r"^/api/v1/tasks/[^/]+/stream/?$")
WEBHOOK_LIMIT = 10 * 1024 * 1024  # bytes of body
LIMIT = 32 * 1024 * 1024
BODY_WITHIN = 30.0  # seconds for all of it: a request that drips holds no thread

_streaming: Any = get_asgi_application()
_threads = OnThreads(get_wsgi_application(), threads=settings.WEB_THREADS)
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
        await _refuse(send, 408, _error("REQUEST_TIMEOUT", f"the body did not arrive within {BODY_WITHIN:.0f} s"))
    except Refused as refused:
        await _refuse(send, refused.status, refused.body)
    else:
        if body is not None:
            await _threads(_with_length(scope, len(body)), body, send)


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
