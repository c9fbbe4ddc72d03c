"""Lock operations, committed in groups: one thread applies all that wait in one transaction, then answers them.

A commit waits for the disk, and that is most of what a lock costs; fifty that come together cost little more than one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import threading
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from django.db import InterfaceError, OperationalError, connection
from pydantic import ValidationError

from agents.redaction import Redactor
from runs import locks, secrets
from runs.db import release_connection
from runs.gateway.callers import living
from runs.lock_table import NOBODY, Answer, Ask, Holder, Verb

log = logging.getLogger(__name__)

MOST = 256  # operations of one transaction
GATHER = 0.002  # seconds that a group is waited for, where the last was one: its commit takes longer than that
REMEMBERED = 4096  # attempts
UNAVAILABLE = Answer(503, {"error": "the database does not answer"})
FAILED = Answer(500, {"error": "internal error"})


@dataclass(frozen=True)
class Wish:
    """What somebody wants who has shown a secret with this digest."""

    verb: Verb
    digest: str
    key: str = ""
    seconds: float | None = None


@dataclass(frozen=True)
class _Waiting:
    wish: Wish
    answer: asyncio.Future[Answer]

    def tell(self, answer: Answer) -> None:
        if not self.answer.done():  # who asked may have gone
            self.answer.set_result(answer)


class Commits:
    """The thread and those who wait for it."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[_Waiting | None] = queue.SimpleQueue()
        self._known: dict[str, tuple[Holder, Redactor]] = {}
        self._last_size = 0
        self._over = False
        self._thread = threading.Thread(target=self._work, name="locks", daemon=True)
        self._thread.start()

    async def answer(self, wish: Wish) -> Answer:
        """What came of it, once that is committed."""
        waiting = _Waiting(wish, asyncio.get_running_loop().create_future())
        self._queue.put(waiting)
        return await waiting.answer

    def stop(self, within: float) -> None:
        """Answer all that has come before; return after `within` seconds at the latest."""
        self._queue.put(None)
        self._thread.join(within)

    def _work(self) -> None:
        while not self._over:
            group = self._next_group()
            answers = self._answers([waiting.wish for waiting in group])
            if group:
                loop = group[0].answer.get_loop()
                with contextlib.suppress(RuntimeError):  # it is closed: the process ends, and nobody listens
                    loop.call_soon_threadsafe(_tell, list(zip(group, answers, strict=True)))
        connection.close()

    def _next_group(self) -> list[_Waiting]:
        group = [self._queue.get()]
        if self._last_size > 1:
            time.sleep(GATHER)
        while len(group) < MOST and not self._queue.empty():
            group.append(self._queue.get())
        self._last_size = len(group)
        self._over = None in group
        return [waiting for waiting in group if waiting is not None]

    def _answers(self, wishes: Sequence[Wish]) -> list[Answer]:
        try:
            return self.apply(wishes)
        except (OperationalError, InterfaceError) as error:
            log.warning("%d lock operations: %s", len(wishes), error)
            connection.close()
            return [UNAVAILABLE] * len(wishes)
        except Exception:  # one of them fails the others: each for itself
            log.exception("%d lock operations", len(wishes))
            connection.close()
            return [FAILED] if len(wishes) == 1 else [self._answers([wish])[0] for wish in wishes]
        finally:
            release_connection()  # the server may be started again before the next group

    def apply(self, wishes: Sequence[Wish]) -> list[Answer]:
        """The answers, in one transaction."""
        if len(self._known) > REMEMBERED:
            self._known.clear()
        self._get_to_know({wish.digest for wish in wishes} - set(self._known))
        asks = {number: self._ask(wish) for number, wish in enumerate(wishes) if wish.digest in self._known}
        answers = dict(zip(asks, locks.answer(list(asks.values())), strict=True))
        return [answers.get(number, NOBODY) for number in range(len(wishes))]

    def _ask(self, wish: Wish) -> Ask:
        holder, redactor = self._known[wish.digest]
        return Ask(wish.verb, holder, redactor.text(wish.key), wish.seconds)

    def _get_to_know(self, digests: Collection[str]) -> None:
        """Who they are never changes; whether they still may ask is asked each time."""
        if not digests:
            return
        for attempt in living().filter(gateway_digest__in=digests):
            try:
                self._known[attempt.gateway_digest] = (Holder.of(attempt), secrets.redactor_of(attempt))
            except ValidationError:
                log.warning("the definition of %s cannot be read: it gets no locks", attempt.run_id)


def _tell(answered: Sequence[tuple[_Waiting, Answer]]) -> None:
    for waiting, answer in answered:
        waiting.tell(answer)
