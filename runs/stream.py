"""Following a run's events: one way for pages, sockets and SSE, whether they come early, late or back again.

Subscribe first, then read rows after the reader's own number, then wait for "run R has reached N", then read
again. A notification that is lost costs a poll interval; a line is never lost, because lines are rows.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from channels.db import database_sync_to_async
from channels.layers import get_channel_layer

from runs import bells, events
from runs.events import Stored
from runs.models import Run

POLL = 2.0  # seconds without a notification after which the rows are looked at anyway
PAGE = 500  # events read at once
READERS = asyncio.Semaphore(8)  # looks at the database at one time: each costs a thread and a connection


async def follow(run_id: str, *, after: int) -> AsyncIterator[list[Stored] | None]:
    """Pages of events above `after` as they come; None whenever everything so far has been given.

    Ends when the run has, with all its events given, or when it is deleted.
    """
    async with heard(bells.run_group(run_id)) as wait:
        while True:
            page, over = await look(run_id, after)
            if page:
                after = page[-1]["id"]
                yield page
                if len(page) == PAGE:
                    continue
            if over:
                return
            yield None
            await wait()


async def look(run_id: str, after: int) -> tuple[list[Stored], bool]:
    """A page, and whether nothing will come after it. The status is read first: no event follows the last."""

    def read() -> tuple[list[Stored], bool]:
        run = Run.objects.filter(pk=run_id, delete_requested_at=None).only("status", "last_event").first()
        page = events.fetch(run_id, after=after, limit=PAGE) if run is None or run.last_event > after else []
        last = page[-1]["id"] if page else after
        return page, run is None or (run.terminal and last >= run.last_event)

    async with READERS:
        found: tuple[list[Stored], bool] = await database_sync_to_async(read, thread_sensitive=False)()
        return found


@contextlib.asynccontextmanager
async def heard(group: str) -> AsyncIterator[Any]:
    """A membership in `group`, and `wait()` that returns when it hears something, or after POLL seconds."""
    layer = get_channel_layer()
    assert layer is not None, "settings name a channel layer"
    channel = ""
    with contextlib.suppress(Exception):  # Redis is away: polling does
        channel = await layer.new_channel()
        await layer.group_add(group, channel)

    async def wait() -> None:
        end = time.monotonic() + POLL
        try:
            await asyncio.wait_for(layer.receive(channel), POLL) if channel else await asyncio.sleep(POLL)
        except TimeoutError:
            pass
        except Exception:  # noqa: BLE001 - Redis went away: polling does
            await asyncio.sleep(max(0.0, end - time.monotonic()))

    try:
        yield wait
    finally:
        with contextlib.suppress(Exception):
            await layer.group_discard(group, channel)
