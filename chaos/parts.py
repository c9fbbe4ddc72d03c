"""The processes that can be hurt: which one a part is now, and when a new one in its place is ready."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Protocol

import httpx
import redis

from agents import private_files
from tests.box import Box

READY_WITHIN = 120.0  # seconds; a supervisor waits longer after each of several deaths in a row
LOOK_EVERY = 0.05  # seconds
ENDS_WITHIN = 30.0  # seconds from TERM


class NotReady(Exception):
    """The part did not come back; the message says which."""


class Part(Protocol):
    name: str

    def pid(self) -> int | None:
        """The process, or None while there is none."""

    def ready(self) -> bool:
        """Whether it answers, as far as it ever answers anybody."""


class Supervised:
    """A process that `agentfleet up` starts again."""

    def __init__(self, box: Box, name: str, answers: Callable[[], bool]) -> None:
        self.name = name
        self._box = box
        self._answers = answers

    def pid(self) -> int | None:
        return self._box.pids().get(self.name)

    def ready(self) -> bool:
        return self._answers()


class SecondWorker:
    """A worker process that we start again ourselves."""

    name = "worker-2"

    def __init__(self, box: Box) -> None:
        self._box = box
        self._process: subprocess.Popen[bytes] | None = None
        self._ending = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name=self.name, daemon=True)

    def start(self) -> None:
        self._process = self._box.worker()
        self._keeper.start()

    def stop(self) -> None:
        """Keep it no longer; the box ends it."""
        self._ending.set()
        if self._keeper.is_alive():
            self._keeper.join()

    def end(self) -> None:
        """Keep it no longer, and tell it to end as an operator would."""
        self.stop()
        if self._process is not None:
            self._process.terminate()

    def wait(self) -> None:
        """Until it has ended. Raises TimeoutExpired."""
        if self._process is not None:
            self._process.wait(ENDS_WITHIN)

    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def ready(self) -> bool:
        return starts_said(self._box, self.name) > 0

    def _keep(self) -> None:
        while not self._ending.wait(LOOK_EVERY):
            if self.pid() is None:
                self._process = self._box.worker()


def all_parts(box: Box, second: SecondWorker) -> dict[str, Part]:
    parts: list[Part] = [
        Supervised(box, "web", lambda: serves(box)),
        Supervised(box, "worker", lambda: starts_said(box, "worker") > 0),
        Supervised(box, "beat", lambda: True),  # it answers nobody
        Supervised(box, "redis", lambda: redis_answers(box)),
        Supervised(box, "gateway", lambda: gateway_answers(box)),
        second,
    ]
    return {part.name: part for part in parts}


def replaced(box: Box, part: Part, how: signal.Signals) -> int:
    """End the part's process with a signal and wait until another is ready. Its process id. Raises NotReady."""
    old, starts = part.pid(), starts_said(box, part.name)
    if old is None:
        raise NotReady(f"{part.name} has no process")
    os.kill(old, how)
    by_log = part.name.startswith("worker")

    def is_new() -> bool:
        new = part.pid()
        started = starts_said(box, part.name) > starts if by_log else part.ready()
        return new is not None and new != old and started

    wait_until(is_new, part.name)
    return old


def frozen(part: Part, seconds: float, ending: threading.Event) -> int:
    """Stop the part's process for so long, or until `ending`, then let it go on. Its process id. Raises NotReady."""
    pid = part.pid()
    if pid is None:
        raise NotReady(f"{part.name} has no process")
    os.kill(pid, signal.SIGSTOP)
    try:
        ending.wait(seconds)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    wait_until(part.ready, part.name)
    return pid


def wait_until(true: Callable[[], bool], what: str) -> None:
    """Raises NotReady."""
    end = time.monotonic() + READY_WITHIN
    while not true():
        if time.monotonic() > end:
            raise NotReady(f"{what} was not ready within {READY_WITHIN:.0f} s")
        time.sleep(LOOK_EVERY)


def starts_said(box: Box, name: str) -> int:
    """How often a worker has said in its log that it is ready."""
    log = box.home / "logs" / f"{name}.log"
    return log.read_bytes().count(b" is ready\n") if log.exists() else 0


def serves(box: Box) -> bool:
    return _healthy(f"{box.client.url}/healthz")


def gateway_answers(box: Box) -> bool:
    """Wherever sandboxes look for it; it listens nowhere as long as there has been none."""
    found = private_files.read_json(box.home / "gateway.json")
    return all(_healthy(f"http://{address}:{found['port']}/health") for address in found.get("addresses", ()))


def _healthy(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def redis_answers(box: Box) -> bool:
    with redis.Redis(unix_socket_path=str(box.home / "redis.sock"), socket_timeout=2) as client:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
