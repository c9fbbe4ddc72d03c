"""Websockets: who may open one, and which there are."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.urls import path

from runs.consumers import RunConsumer

sockets = [path("ws/runs/<str:run_id>/", RunConsumer.as_asgi())]

App = Callable[[Any, Any, Any], Awaitable[None]]


class SameOrigin:
    """Only pages of this server open sockets: a browser sends cookies along for anybody's page."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
        headers = dict(scope["headers"])
        origin = headers.get(b"origin", b"").decode("latin-1")
        host = headers.get(b"host", b"").decode("latin-1")
        if urlsplit(origin).netloc == host or origin in settings.CSRF_TRUSTED_ORIGINS:
            await self._app(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 4403})
