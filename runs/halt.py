"""The one signal every blocking wait of a step also waits for."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from enum import StrEnum
from typing import Any


class Why(StrEnum):
    CANCEL = "cancel"  # somebody asked for it
    INTERRUPT = "interrupt"  # somebody has something to say first
    LOST = "lost"  # another process has the lease now
    DEADLINE = "deadline"  # the run's time is up
    IDLE = "idle"  # it has said nothing for too long
    STOPPING = "stopping"  # this process is going away


class Halted(Exception):
    """The step must end here. What is stored stays; nothing more may be."""

    def __init__(self, why: Why) -> None:
        super().__init__(why.value)
        self.why = why


class Halt:
    """Set once, by any thread; the first reason stays. Threads and callbacks waiting on it wake at once."""

    def __init__(self) -> None:
        self.why: Why | None = None
        self.heard = 0  # the newest interrupt that the step knew of when it began: it needs no telling
        self._lock = threading.Lock()
        self._listeners: list[Callable[[], Any]] = []

    def set(self, why: Why) -> None:
        with self._lock:
            if self.why is not None:
                return
            self.why = why
            listeners, self._listeners = self._listeners, []
        for listener in listeners:
            listener()

    def interrupt(self, newest: int) -> None:
        """Set for an interrupt of that number, if the step does not know of it. 0: there is none."""
        if newest > self.heard:
            self.set(Why.INTERRUPT)

    def check(self) -> None:
        """Raises Halted if it is set."""
        if self.why is not None:
            raise Halted(self.why)

    def listen(self, listener: Callable[[], Any]) -> None:
        """Call `listener` when it is set, at once if it is already. It must not block or raise."""
        with self._lock:
            if self.why is None:
                self._listeners.append(listener)
                return
        listener()

    def ignore(self, listener: Callable[[], Any]) -> None:
        """Take a listener back; too late is fine."""
        with self._lock:
            if listener in self._listeners:
                self._listeners.remove(listener)

    def wait_first(self, *futures: Future[Any]) -> None:
        """Return when one of the futures is done; raises Halted if that comes first. The futures go on."""
        woken = threading.Event()
        self.listen(woken.set)
        for future in futures:
            future.add_done_callback(lambda _: woken.set())
        try:
            woken.wait()
        finally:
            self.ignore(woken.set)
        if not any(future.done() for future in futures):
            self.check()

    def sleep(self, seconds: float) -> None:
        """Raises Halted as soon as it is set."""
        woken = threading.Event()
        self.listen(woken.set)
        try:
            woken.wait(seconds)
        finally:
            self.ignore(woken.set)
        self.check()
