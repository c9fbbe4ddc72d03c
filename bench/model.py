"""The mock model as a process of its own, so that nothing it does shares a lock with what is measured.

`python -m bench.model` serves `two_turns`, says its address, then the time of each run's first request, a line each.
It ends when its standard input does: with whoever started it.
"""

from __future__ import annotations

import os
import queue
import subprocess
import sys
import threading
from typing import Self

from bench.figures import Unmeasured
from tests.doubles.anthropic import Asked, MockAnthropic, Reply, two_turns

ASKED_WITHIN = 30.0  # seconds from a webhook to the model's first request


class Model:
    """`with Model() as model:`; `model.url` goes into ANTHROPIC_BASE_URL."""

    def __init__(self) -> None:
        self.url = ""
        self._arrivals: queue.SimpleQueue[float] = queue.SimpleQueue()

    def __enter__(self) -> Self:
        # A session of its own: Ctrl-C is for the bench, which ends this process when it no longer needs it.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.model"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.url = self._process.stdout.readline().strip()
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def run_began(self) -> float:
        """When the next run's first request arrived, as `time.time()`. Raises Unmeasured."""
        try:
            return self._arrivals.get(timeout=ASKED_WITHIN)
        except queue.Empty as error:
            raise Unmeasured(f"the model was not asked within {ASKED_WITHIN:.0f} s") from error

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._arrivals.put(float(line))


def told(asked: Asked) -> Reply:
    if asked.turn == 0:
        # One write a line: plans are asked from several threads, and `print` writes its newline apart.
        os.write(sys.stdout.fileno(), f"{asked.at}\n".encode())
    return two_turns(asked)


if __name__ == "__main__":
    with MockAnthropic(told, remember=False) as mock:
        print(mock.url, flush=True)
        sys.stdin.read()
