"""What goes wrong, when, and until when: one fault at a time for each part, several parts at a time.

The seed orders the faults; none befalls a part before it is ready again after its last.
"""

from __future__ import annotations

import logging
import random
import signal
import sqlite3
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from chaos import databases, parts
from chaos.engines import Engine
from chaos.parts import NotReady, Part
from tests.box import Box

log = logging.getLogger("chaos.faults")

FROZEN = (2.0, 25.0)  # seconds a worker or the gateway is stopped: less and more than a lease, and than a request waits
AWAY = (2.0, 8.0)  # seconds Redis is stopped, or SQLite's lock held


Done = tuple[str, tuple[str, ...]]


@dataclass(frozen=True)
class Happened:
    """One fault. Times as `time.time()`; `ready` is when the part worked again, infinite if it never did."""

    part: str
    kind: str
    began: float
    ready: float = float("inf")
    detail: str = ""
    run_ids: tuple[str, ...] = ()  # whose sandboxes were killed

    def __str__(self) -> str:
        return f"{self.kind} {self.part}{' ' if self.detail else ''}{self.detail}"


@dataclass(frozen=True)
class Fault:
    """`befall` comes back when the part works again, with what it did in words and whose sandboxes it killed."""

    part: str
    kind: str
    befall: Callable[[], Done]


class Nothing(Exception):
    """There was nothing to hurt."""


@dataclass
class Monkey:
    """`start` lets a fault happen every so many seconds, `stop` ends that and waits until every part works again."""

    faults: Sequence[Fault]
    draw: random.Random
    every: float  # seconds
    happened: list[Happened] = field(default_factory=list)
    broken: BaseException | None = None  # what went wrong with a fault itself: nothing after it can be judged
    _busy: set[str] = field(default_factory=set)
    _stop: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _under_way: list[threading.Thread] = field(default_factory=list)
    _deck: list[Fault] = field(default_factory=list)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._keep_on, name="faults", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Begin nothing more."""
        self._stop.set()

    def stop(self) -> None:
        self.end()
        self._thread.join()
        for thread in self._under_way:
            thread.join()

    def check(self) -> None:
        """Raises what made a fault impossible."""
        if self.broken is not None:
            raise self.broken

    def kinds(self) -> Counter[str]:
        with self._lock:
            return Counter(f"{fault.kind} {fault.part}" for fault in self.happened)

    def _keep_on(self) -> None:
        while not self._stop.wait(self.every):
            if (fault := self._drawn()) is not None:
                thread = threading.Thread(target=self._let_happen, args=[fault], name=fault.kind, daemon=True)
                self._under_way.append(thread)
                thread.start()

    def _drawn(self) -> Fault | None:
        """The next card whose part is ready; from a deck shuffled anew if there is none, so each kind has its turn."""
        with self._lock:
            if not self._playable():
                self._deck = self.draw.sample(self.faults, len(self.faults))
            fault = next(iter(self._playable()), None)
            if fault is not None:
                self._deck.remove(fault)
                self._busy.add(fault.part)
            return fault

    def _playable(self) -> list[Fault]:
        return [fault for fault in self._deck if fault.part not in self._busy]

    def _let_happen(self, fault: Fault) -> None:
        began = Happened(fault.part, fault.kind, time.time())
        log.debug("%s", began)
        try:
            detail, run_ids = fault.befall()
        except Nothing as nothing:
            log.debug("%s: %s", began, nothing)
        except NotReady as error:
            self._note(replace(began, detail=str(error)))
            return  # it stays busy: what is broken is not broken again
        except Exception as error:  # noqa: BLE001 - the edge of a thread: `check` raises it in the other
            self.broken = error
        else:
            self._note(replace(began, ready=time.time(), detail=detail, run_ids=run_ids))
        with self._lock:
            self._busy.discard(fault.part)

    def _note(self, happened: Happened) -> None:
        with self._lock:
            self.happened.append(happened)
        log.debug("%s: ready after %.1f s", happened, happened.ready - happened.began)


def all_faults(
    box: Box,
    of: dict[str, Part],
    *,
    fleet: str,
    database_url: str,
    engine: Engine | None,
    draw: random.Random,
    ending: threading.Event,
) -> list[Fault]:
    return [
        *(killed(box, of[name]) for name in ("worker", "worker-2", "web", "beat", "redis", "gateway")),
        *(frozen(of[name], FROZEN, draw, ending) for name in ("worker", "worker-2", "gateway")),
        frozen(of["redis"], AWAY, draw, ending),
        *(ended(box, of[name]) for name in ("worker", "worker-2", "gateway")),
        *[sandbox_killed(fleet, draw)] * 2,
        restarted(database_url) if database_url else locked(box, draw, ending),
        *([] if engine is None else [engine_restarted(engine, fleet)]),
    ]


def killed(box: Box, part: Part) -> Fault:
    return Fault(part.name, "kill", lambda: (f"pid {parts.replaced(box, part, signal.SIGKILL)}", ()))


def ended(box: Box, part: Part) -> Fault:
    return Fault(part.name, "end", lambda: (f"pid {parts.replaced(box, part, signal.SIGTERM)}", ()))


def frozen(part: Part, between: tuple[float, float], draw: random.Random, ending: threading.Event) -> Fault:
    def befall() -> Done:
        seconds = draw.uniform(*between)
        return f"pid {parts.frozen(part, seconds, ending)} for {seconds:.1f} s", ()

    return Fault(part.name, "freeze", befall)


def sandbox_killed(fleet: str, draw: random.Random) -> Fault:
    def befall() -> Done:
        running = sandboxes(fleet)
        if not running:
            raise Nothing("no sandbox runs")
        container, run_id = draw.choice(running)
        done = subprocess.run(["docker", "kill", container], capture_output=True, text=True, check=False)
        if done.returncode:
            raise Nothing(done.stderr.strip())
        return f"{container} of {run_id}", (run_id,)

    return Fault("sandbox", "kill", befall)


def sandboxes(fleet: str, *, ended_too: bool = False) -> list[tuple[str, str]]:
    """The id of each container of the fleet, and its run's. Raises CalledProcessError."""
    shown = ["--filter", f"label=agentfleet.fleet={fleet}", "--format", '{{.ID}} {{.Label "agentfleet.run"}}']
    argv = ["docker", "ps", *shown, *(["-a"] if ended_too else [])]
    lines = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()
    return sorted((container, run_id) for container, _, run_id in (line.partition(" ") for line in lines))


def engine_restarted(engine: Engine, fleet: str) -> Fault:
    """Every container ends with it; those that were just being made are seen only afterwards."""

    def befall() -> Done:
        before = sandboxes(fleet)
        engine.stop()
        engine.start()
        hit = {run_id for _, run_id in [*before, *sandboxes(fleet, ended_too=True)]}
        return f"under {len(hit)} runs", tuple(sorted(hit))

    return Fault("engine", "restart", befall)


def locked(box: Box, draw: random.Random, ending: threading.Event) -> Fault:
    def befall() -> Done:
        seconds = draw.uniform(*AWAY)
        try:
            databases.hold_write_lock(box.home / "agentfleet.sqlite3", seconds, ending)
        except sqlite3.OperationalError as error:
            raise Nothing(str(error)) from error
        return f"for {seconds:.1f} s", ()

    return Fault("database", "lock", befall)


def restarted(url: str) -> Fault:
    server = databases.Server(url)

    def befall() -> Done:
        server.restart()
        return "", ()

    return Fault("database", "restart", befall)
