"""Processes that are meant to be there as long as this one is."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

STOP_WITHIN = 10.0  # seconds from TERM to KILL
_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


class CannotStart(Exception):
    """Says what is missing and what to do."""


@dataclass
class Child:
    """A process that is meant to be there."""

    name: str
    argv: list[str]
    env: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    deaths: int = 0  # in a row, each soon after its start

    def start(self, log: Path) -> None:
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                self.argv,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - this process has one thread
                start_new_session=True,
            )
        self.started_at = time.monotonic()

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None and self.process.poll() is None else None


def end_all(children: list[Child]) -> None:
    """TERM to all at once, and KILL to those that take too long."""
    for child in children:
        if child.pid is not None and child.process is not None:
            child.process.terminate()
    end = time.monotonic() + STOP_WITHIN
    for child in children:
        if child.process is None:
            continue
        try:
            child.process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()


def _die_with_parent() -> None:
    """A supervisor killed with -9 must not leave a second set of processes behind for the next `up`."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
