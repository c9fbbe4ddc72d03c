"""What the doctor looks at, and what he says of it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from agentfleet import background
from agents import private_files

PATIENCE = 5.0  # seconds for an answer of our own processes
STARTING = timedelta(seconds=15)  # what a worker has to be heard of, and its sweep to fire what is due
SHOWN = 5  # of a list of faults


@dataclass(frozen=True)
class Check:
    """What was looked at, whether it is as it should be, and a sentence."""

    name: str
    ok: bool
    says: str

    @property
    def word(self) -> str:
        return ("note" if self.name == "warning" else "ok") if self.ok else "WRONG"


class Wrong(Exception):
    """What is wrong, and the next step."""


@dataclass(frozen=True)
class Place:
    """The installation to look at. `port` is the one `up` would take."""

    home: Path
    port: int

    @property
    def is_up(self) -> bool:
        return background.supervisor(self.home) is not None

    @property
    def pids(self) -> dict[str, int]:
        return private_files.read_json(self.home / "pids.json")

    def log(self, role: str) -> str:
        return f"{self.home}/logs/{role}.log"

    def worker_is_new(self) -> bool:
        started = background.started_at(self.pids.get("worker", 0))
        if started is None:
            return False
        since_boot = float(Path("/proc/uptime").read_text().split()[0])
        return since_boot - started / os.sysconf("SC_CLK_TCK") < STARTING.total_seconds()
