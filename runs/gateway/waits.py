"""Callers that wait for calls: any number of them, and no thread for one.

One task asks the database twice a second, for all who wait together, whose calls have ended; only these are looked at.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from runs import agent_calls
from runs.agent_calls import CallStatus
from runs.models import TERMINAL, Attempt, Run

log = logging.getLogger(__name__)

EVERY = 0.5  # seconds
LONGEST = 20.0  # seconds of one request

OVER = frozenset({"completed", "error"})
NOT_YET: CallStatus = {"status": "running"}  # the call is over, and the caller's slot is not yet back

T = TypeVar("T")


class Ask(Protocol):
    """Ask the database, on a thread."""

    async def __call__(self, what: Callable[..., T], /, *args: Any) -> T: ...


@dataclass(frozen=True, eq=False)
class Waiting:
    caller: Attempt
    call_id: str
    over: asyncio.Future[CallStatus]


class Waits:
    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._waiting: set[Waiting] = set()
        self._looking: asyncio.Task[None] | None = None

    async def wait(self, caller: Attempt, call_id: str, seconds: float) -> CallStatus:
        """The call's status when it is over, or after so many seconds. Raises NoSuchCall."""
        await self._ask(agent_calls.begin_wait, caller, call_id)
        over = await self._over(caller, call_id)
        if over is None:
            over = await self._wait(Waiting(caller, call_id, asyncio.get_running_loop().create_future()), seconds)
        over = over or await self._over(caller, call_id)
        if over is not None:
            return over
        now = await self._ask(agent_calls.status, caller, call_id)
        return NOT_YET if now["status"] in OVER else now

    def stop(self) -> None:
        for waiting in self._waiting:
            waiting.over.cancel()
        if self._looking is not None:
            self._looking.cancel()

    async def _wait(self, waiting: Waiting, seconds: float) -> CallStatus | None:
        self._waiting.add(waiting)
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look())
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    return await waiting.over
        finally:
            self._waiting.discard(waiting)
        return None

    async def _look(self) -> None:
        """As long as anybody waits."""
        while self._waiting:
            await asyncio.sleep(EVERY)
            try:
                await self._look_once()
            except Exception:
                log.exception("looking for calls that are over")

    async def _look_once(self) -> None:
        ended = await self._ask(ended_calls, {waiting.call_id for waiting in self._waiting})
        for waiting in [each for each in self._waiting if each.call_id in ended]:
            try:
                over = await self._over(waiting.caller, waiting.call_id)
            except agent_calls.NoSuchCall as error:
                if not waiting.over.done():
                    waiting.over.set_exception(error)
                continue
            if over is not None and not waiting.over.done():
                waiting.over.set_result(over)

    async def _over(self, caller: Attempt, call_id: str) -> CallStatus | None:
        """As agent_calls.wait_over. As long as the caller waits for another call too, its slot stays with others."""
        others = {each.call_id for each in self._waiting if each.caller.pk == caller.pk and each.call_id != call_id}
        if not others or others <= await self._ask(ended_calls, others):
            return await self._ask(agent_calls.wait_over, caller, call_id)
        now = await self._ask(agent_calls.status, caller, call_id)
        return now if now["status"] in OVER else None


def ended_calls(call_ids: set[str]) -> set[str]:
    """Those of them that are over, whosever they are."""
    by_run = {agent_calls.run_of(call_id): call_id for call_id in call_ids}
    over = Run.objects.filter(pk__in=by_run, status__in=TERMINAL).order_by()
    return {by_run[run_id] for run_id in over.values_list("pk", flat=True)}
