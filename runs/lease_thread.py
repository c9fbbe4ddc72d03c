"""The lease thread: keeps the leases of the steps this process works on, and stops the steps that must end.

Leases are renewed in one UPDATE, and wishes read with it. A process that could not renew for long stops its steps
itself, before anybody else can go on with them.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from django.db import connection

from agents import clock
from runs import inbox, leases
from runs.halt import Why
from runs.leases import Lease
from runs.step import Step

log = logging.getLogger(__name__)

TICK = 0.5  # seconds between looks at deadlines


class LeaseThread:
    """The steps at work here. `seen` notes that this process lives; it is called as often as leases are renewed."""

    def __init__(self, owner: str, *, seen: Callable[[], None]) -> None:
        self._owner = owner
        self._seen = seen
        self._lock = threading.Lock()
        self._steps: dict[str, Step] = {}
        self._given_up: list[Lease] = []  # of steps that the database failed in

    def start(self) -> None:
        threading.Thread(target=self._keep, name="leases", daemon=True).start()

    @property
    def count(self) -> int:
        """How many steps are at work."""
        return len(self._steps)

    def hold(self, step: Step) -> None:
        """From here on the step's lease is renewed. An older step of its run has lost its own."""
        with self._lock:
            replaced = self._steps.get(step.lease.run_id)
            self._steps[step.lease.run_id] = step
        if replaced is not None:
            replaced.halt.set(Why.LOST)

    def let_go(self, step: Step) -> None:
        with self._lock:
            if self._steps.get(step.lease.run_id) is step:
                del self._steps[step.lease.run_id]

    def step_of(self, run_id: str) -> Step | None:
        return self._steps.get(run_id)

    def active(self) -> list[Step]:
        with self._lock:
            return list(self._steps.values())

    def halt_all(self, why: Why) -> None:
        for step in self.active():
            step.halt.set(why)

    def give_up(self, step: Step) -> None:
        """The database failed in this step: its lease ends when the database answers."""
        with self._lock:
            self._given_up.append(step.lease)

    def end_given_up(self) -> None:
        """End the leases of steps that the database failed in: it answers again, and nobody works on them.

        Going on counts as a takeover, so what fails for another reason than an outage comes to its end.
        """
        with self._lock:
            ended = list(self._given_up)
        leases.end(ended)
        with self._lock:
            self._given_up = self._given_up[len(ended) :]

    def renew(self) -> None:
        steps = {step.lease.run_id: step for step in self.active()}
        held = leases.renew(self._owner, steps.keys())
        interrupts = inbox.interrupts(steps.keys())
        for run_id, step in steps.items():
            if step.released:
                continue
            epoch, canceled = held.get(run_id, (None, False))
            if epoch != step.lease.epoch:
                step.halt.set(Why.LOST)
            elif canceled:
                step.halt.set(Why.CANCEL)
            step.halt.interrupt(interrupts.get(run_id, 0))

    def _keep(self) -> None:
        renewed_at = seen_at = time.monotonic()
        while True:
            time.sleep(TICK)
            now = time.monotonic()
            # Frozen or cut off: somebody else may have gone on. Checked before renewing, which would hide it.
            if now - renewed_at > leases.GIVE_UP_AFTER:
                self.halt_all(Why.LOST)
                renewed_at = now
            self.halt_overdue()
            if now - renewed_at < leases.RENEW_EVERY:
                continue
            try:
                self.renew()
                renewed_at = now
                self.end_given_up()
                if now - seen_at >= leases.RENEW_EVERY:
                    self._seen()
                    seen_at = now
            except Exception:
                log.exception("leases could not be renewed")
            finally:
                connection.close()

    def halt_overdue(self) -> None:
        now = clock.now()
        for step in self.active():
            if (why := step.overdue(now)) is not None:
                step.halt.set(why)
