"""Following a run's events: one way for pages, sockets and SSE, whether they come early, late or back again.

Subscribe first, then read rows after the reader's own number, then wait for "run R has reached N", then read
again. A notification that is lost costs a poll interval; a line is never lost, because lines are rows.

Who only wants to know when a run has settled needs no rows: all of them share one subscription and one look at the
database, so that a waiter costs a coroutine, and hundreds cost hardly more than one.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from typing import Any

from channels.db import database_sync_to_async
from channels.layers import get_channel_layer
from django.db import Error as DatabaseAway

from runs import bells, events
from runs.events import Stored
from runs.models import TERMINAL, Run, WaitReason

POLL = 2.0  # seconds without a notification after which the rows are looked at anyway
PAGE = 500  # events read at once
READERS = asyncio.Semaphore(8)  # looks at the database at one time: each costs a thread and a connection
GATHER = 0.02  # seconds between two looks for all who wait: what comes meanwhile is answered together
REDIS_WITHIN = 1.0  # seconds for changing the subscriptions of all who wait; without them polling does

A_PERSON = frozenset({WaitReason.INPUT, WaitReason.APPROVAL})  # nothing happens until somebody sees to it


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


async def until_settled(run_id: str, *, within: float) -> None:
    """Return once the run is over, waits for a person or is deleted; at the latest after `within` seconds.

    Holds no thread and no connection meanwhile. A database or a Redis that is away is waited for.
    """
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within):
            await _watch.settled(run_id)


def unsettled(run_ids: list[str]) -> set[str]:
    """Those of the runs about which more is to be expected without anybody's doing."""
    going_on = Run.objects.filter(pk__in=run_ids, delete_requested_at=None).exclude(status__in=TERMINAL)
    return set(going_on.exclude(wait_reason__in=A_PERSON).values_list("pk", flat=True))


def waits_for_a_person(run: Run) -> bool:
    return run.wait_reason in A_PERSON


class Watch:
    """The runs that somebody waits for. While there are any, one task hears of them all and looks at them all."""

    def __init__(self) -> None:
        self._waiters: dict[str, set[asyncio.Future[None]]] = {}
        self._changed = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None

    async def settled(self, run_id: str) -> None:
        """Return once the run has settled."""
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.setdefault(run_id, set()).add(waiter)
        if self._looking is None:
            self._changed = asyncio.Event()
            self._looking = asyncio.create_task(self._look_on())
        self._changed.set()
        try:
            await waiter
        finally:
            self._forget(run_id, waiter)

    def _forget(self, run_id: str, waiter: asyncio.Future[None]) -> None:
        self._waiters[run_id].discard(waiter)
        if not self._waiters[run_id]:
            del self._waiters[run_id]
            self._changed.set()

    async def _look_on(self) -> None:
        """Subscribe, look, wait for news or POLL seconds; until nobody waits any more."""
        changed, ears = self._changed, _Ears(self._changed)
        try:
            while self._waiters:
                changed.clear()
                await ears.listen_for(set(self._waiters))
                await self._look()
                await asyncio.sleep(GATHER)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(changed.wait(), POLL)
        finally:
            self._looking = None  # who comes from here on starts another
            await ears.close()

    async def _look(self) -> None:
        asked = list(self._waiters)
        try:
            going_on = await database_sync_to_async(unsettled, thread_sensitive=False)(asked)
        except DatabaseAway:
            return
        for run_id in set(asked) - going_on:
            for waiter in self._waiters.get(run_id, ()):
                if not waiter.done():
                    waiter.set_result(None)


class _Ears:
    """One channel, a member of the groups of many runs; whatever it hears sets `heard`."""

    def __init__(self, heard: asyncio.Event) -> None:
        self._heard = heard
        self._layer: Any = get_channel_layer()
        self._channel = ""
        self._subscribed: set[str] = set()
        self._listening: asyncio.Task[None] | None = None

    async def listen_for(self, run_ids: set[str]) -> None:
        """Be a member of the groups of these runs and of no others, as far as Redis answers."""
        with contextlib.suppress(Exception):  # Redis is away: polling does
            async with asyncio.timeout(REDIS_WITHIN):
                if self._listening is None:
                    self._channel = await self._layer.new_channel()
                    self._listening = asyncio.create_task(self._listen())
                for run_id in self._subscribed - run_ids:
                    await self._layer.group_discard(bells.run_group(run_id), self._channel)
                    self._subscribed.discard(run_id)
                for run_id in run_ids - self._subscribed:
                    await self._layer.group_add(bells.run_group(run_id), self._channel)
                    self._subscribed.add(run_id)

    async def _listen(self) -> None:
        while True:
            try:
                await self._layer.receive(self._channel)
                pause = GATHER
            except Exception:  # noqa: BLE001 - Redis went away, and may come back without its groups
                self._subscribed.clear()
                pause = POLL
            self._heard.set()
            await asyncio.sleep(pause)

    async def close(self) -> None:
        await self.listen_for(set())
        if self._listening is not None:
            self._listening.cancel()


_watch = Watch()
