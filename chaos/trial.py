"""One trial: the work is sent while parts are hurt, then everything may come to its end, then the records are taken."""

from __future__ import annotations

import contextlib
import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from agentfleet.client import NoServer, ServerSays
from chaos import installation, parts
from chaos.engines import Engine
from chaos.faults import Monkey, all_faults
from chaos.model import Player
from chaos.records import Evidence, all_runs, live
from chaos.senders import Senders
from chaos.work import Plan, chance
from tests.box import Box

log = logging.getLogger("chaos.trial")

TELL_EVERY = 10.0  # seconds
OVER_WITHIN = 1800.0  # seconds after the last fault for all runs to end
STUCK_AFTER = 240.0  # seconds of these in which no model is asked: nothing ends any more
GONE_WITHIN = 100.0  # seconds after that for the last container; the sweep asks the engine every 60


@dataclass(frozen=True, kw_only=True)
class Conditions:
    """`seconds`: for how long work comes and parts are hurt. `every`: seconds between two faults."""

    seed: int
    seconds: float
    every: float
    fleet: str
    database_url: str = ""
    engine: Engine | None = None  # one that may be restarted


class Trial:
    """`hold` it once."""

    def __init__(self, conditions: Conditions, box: Box, plans: Sequence[Plan], player: Player) -> None:
        self._box = box
        self._plans = plans
        self._player = player
        self._fleet = conditions.fleet
        self._database_url = conditions.database_url
        self._seconds = conditions.seconds
        self._ending = threading.Event()
        self._second = parts.SecondWorker(box)
        self._senders = Senders(plans, installation.address(box))
        self._monkey = self._make_monkey(conditions)

    def hold(self) -> Evidence:
        """What is known when all runs are over, or should be. Raises what made a fault impossible, NotReady."""
        try:
            self._second.start()
            parts.wait_until(self._second.ready, self._second.name)
            self._hurt()
            self._wait_for_the_end()
            return self._take_records()
        finally:
            self._ending.set()
            self._monkey.end()
            self._second.stop()

    def _make_monkey(self, conditions: Conditions) -> Monkey:
        draw = chance(conditions.seed, "faults")
        faults = all_faults(
            self._box,
            parts.all_parts(self._box, self._second),
            fleet=conditions.fleet,
            database_url=conditions.database_url,
            engine=conditions.engine,
            draw=draw,
            ending=self._ending,
        )
        return Monkey(faults, draw, conditions.every)

    def _hurt(self) -> None:
        self._began = time.monotonic()
        self._senders.start()
        self._monkey.start()
        self._until(lambda: False, self._seconds)
        self._monkey.stop()
        self._monkey.check()
        log.info("faults: %s", ", ".join(f"{kind} {count}" for kind, count in sorted(self._monkey.kinds().items())))
        for fault in self._monkey.happened:
            if math.isinf(fault.ready):
                log.info("never ready again: %s", fault)

    def _wait_for_the_end(self) -> None:
        log.info("the last fault is over; waiting for the runs to end")
        asked = _Lasting(lambda: self._player.requests)
        self._until(lambda: self._all_over() or asked.unchanged() > STUCK_AFTER, OVER_WITHIN)
        self._senders.give_up()

    def _take_records(self) -> Evidence:
        began = time.monotonic()
        self._until(lambda: not installation.left(self._fleet), GONE_WITHIN)
        left = installation.left(self._fleet)
        after = time.monotonic() - began
        log.info("containers and volumes %s %.1f s after the last run's end", "stand" if left else "are gone", after)
        runs = all_runs(self._box.client)
        left += self._what_is_held()
        return Evidence(self._senders.promises(), runs, self._player.attempts, self._monkey.happened, left)

    def _what_is_held(self) -> list[str]:
        """Then everything is ended, as an operator would."""
        held = installation.held(self._box, self._database_url)
        self._second.end()
        self._box.down()
        self._second.wait()
        return [*held, *installation.networks_left(self._box)]

    def _all_over(self) -> bool:
        with contextlib.suppress(NoServer, ServerSays):
            return self._senders.done() and live(self._box.client) == 0
        return False

    def _until(self, true: Callable[[], bool], within: float) -> None:
        """Come back as soon as it is so, or the time is over; say meanwhile how far it is. Raises as `Monkey.check`."""
        began = said_at = time.monotonic()
        while not true() and time.monotonic() - began < within:
            time.sleep(0.5)
            self._monkey.check()
            if time.monotonic() - said_at >= TELL_EVERY:
                said_at = time.monotonic()
                self._tell()

    def _tell(self) -> None:
        log.info(
            "%4.0f s  sent %d of %d, last answers given %d, model requests %d, faults %d",
            time.monotonic() - self._began, self._senders.answered, len(self._plans), len(self._player.answered),
            self._player.requests, len(self._monkey.happened),
        )  # fmt: skip


class _Lasting:
    """For how long a number has been the same."""

    def __init__(self, number: Callable[[], int]) -> None:
        self._number = number
        self._last = number()
        self._since = time.monotonic()

    def unchanged(self) -> float:
        """Seconds."""
        if (now := self._number()) != self._last:
            self._last, self._since = now, time.monotonic()
        return time.monotonic() - self._since
