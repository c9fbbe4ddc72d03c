"""The websocket of a run's page: its events after the reader's last, then live."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer

from runs import stream


@database_sync_to_async  # type: ignore[untyped-decorator]
def may_watch(user: Any) -> bool:
    """Whoever may see the run's page."""
    return user is not None and user.is_active and user.is_staff and user.has_perm("runs.view_run")


class RunConsumer(AsyncJsonWebsocketConsumer):
    """The page opens with {"after": N}; it gets {"events": […]}, and {"over": true} when there is no more."""

    async def connect(self) -> None:
        if not await may_watch(self.scope.get("user")):
            await self.close(code=4401)
            return
        self._following: asyncio.Task[None] | None = None
        await self.accept()

    async def receive_json(self, content: Any, **kwargs: Any) -> None:
        after = content.get("after") if isinstance(content, dict) else None
        if not isinstance(after, int) or after < 0:
            await self.close(code=4400)
            return
        await self._stop()
        self._following = asyncio.create_task(self._follow(after))

    async def disconnect(self, code: int) -> None:
        await self._stop()

    async def _follow(self, after: int) -> None:
        run_id = self.scope["url_route"]["kwargs"]["run_id"]
        async for page in stream.follow(run_id, after=after):
            if page:
                await self.send_json({"events": page})
        await self.send_json({"over": True})

    async def _stop(self) -> None:
        following = getattr(self, "_following", None)
        if following is not None:
            following.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await following
