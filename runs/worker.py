"""This process as the fleet sees it: an owner of leases on a host, which takes work and does it step by step.

Four threads of its own beside the pool: one keeps the leases, one sweeps, one sends to others, one loads heavy imports
after the worker has said that it is ready.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from secrets import token_hex

from django.conf import settings
from django.db import DatabaseError, connection
from django.utils.module_loading import import_string

from agents import clock, private_files
from agents.ids import new_id
from runs import agent_calls, bells, builds, endings, engine, inbox, leases, lifecycle, llm, sweep
from runs.bells import Bell
from runs.db import release_connection
from runs.halt import Why
from runs.lease_thread import LeaseThread
from runs.leases import Lease, LeaseLost
from runs.models import Host, Run, SandboxState
from runs.outgoing_sender import Sender
from runs.sandbox.base import Engine, SandboxError
from runs.sandbox.cleanup import clean_up
from runs.step import Step

log = logging.getLogger(__name__)

GONE_AFTER = 7.5  # seconds from SIGTERM to the end of this process, whatever hangs


class Worker:
    """Start it once per process; `look` and `look_for_work` may be called from any thread."""

    def __init__(self, home: Path, *, threads: int, make_engine: Callable[[str], Engine]) -> None:
        self.owner = new_id("own")
        self.host_id = private_files.write_once(home / "host_id", token_hex(6))
        self.engine = make_engine(self.host_id)
        self.threads = threads
        self.stopping = threading.Event()
        self.home = home
        self._owners = home / "owners"
        self.builder = builds.Builder(
            self.engine, host_id=self.host_id, owner=self.owner, owners=self._owners, stopping=self.stopping
        )
        self.lease_thread = LeaseThread(self.owner, seen=self._seen)
        self.sender = Sender(stopping=self.stopping)
        self._lock = threading.Lock()
        self._pool: Executor | None = None
        self._handed: dict[object, float] = {}
        self._in_line = 0  # handed to the pool and not begun

    # --- life ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Become an owner. From here on this process may hold leases."""
        self._owners.mkdir(mode=0o700, exist_ok=True)
        self._hold_owner_file()
        self._seen()
        leases.expire_of_dead(self._owners, self.owner)
        connection.close()
        self.lease_thread.start()

    def work_with(self, pool: Executor) -> None:
        """Take work: the sweep hands what it finds to this pool, and this process's own bells go there."""
        self._pool = pool
        bells.answer_here(self.answer)
        threading.Thread(target=self._sweep, name="sweep", daemon=True).start()
        self.sender.start(self._edge)
        threading.Thread(target=self._warm, name="warm", daemon=True).start()

    def stop(self) -> None:
        """Take nothing more, end every step at its next safe point; be gone soon whatever happens."""
        self.stopping.set()
        self.lease_thread.halt_all(Why.STOPPING)
        last = threading.Timer(GONE_AFTER, os._exit, [0])
        last.daemon = True
        last.start()

    def leave(self) -> None:
        """The last of this process: what it has made of this host for sandboxes goes, where none stands on it."""
        try:
            self.engine.remove_networks()
        except SandboxError as error:
            log.info("the networks of sandboxes stay: %s", error)

    @property
    def free(self) -> int:
        """Threads that have nothing to do and nothing coming."""
        return max(0, self.threads - self.lease_thread.count - self._in_line)

    # --- work ------------------------------------------------------------------------------------------------

    def look(self, run_id: str) -> None:
        """Do the run's next step, if nobody is at it; if this process is, see what is wished."""
        if self.stopping.is_set():
            return
        # The row decides whether somebody is at it: a step that has just let go may still be listed here.
        lease = leases.take(run_id, self.owner)
        if lease is not None:
            self._work(lease)
            return
        step = self.lease_thread.step_of(run_id)
        if step is None:
            return
        if Run.objects.filter(pk=run_id, cancel_requested_at__isnull=False).exists():
            step.halt.set(Why.CANCEL)
        step.halt.interrupt(inbox.interrupts([run_id]).get(run_id, 0))

    def look_for_work(self, agent_id: int) -> None:
        """Begin the next run of the agent's line, if there is a slot for it."""
        if self.stopping.is_set():
            return
        lease = lifecycle.claim(agent_id, owner=self.owner, host_id=self.host_id)
        if lease is not None:
            self._work(lease)

    def hand(self, what: Callable[[], None], key: object) -> None:
        """Work for this process's own pool, none twice within two seconds. For the sweep."""
        now = time.monotonic()
        if self._pool is None or now - self._handed.get(key, 0.0) < sweep.EVERY:
            return
        self._handed = {key: at for key, at in self._handed.items() if now - at < sweep.EVERY}
        self._handed[key] = now
        try:
            self._put_in_line(self._pool, what)
        except RuntimeError:  # the pool is closing
            self.stopping.set()

    def answer(self, bell: Bell) -> bool:
        """Take a bell that this process has rung itself. False: it is another's, or there is no thread for it."""
        mine = bell.host in {None, self.host_id}
        if self._pool is None or self.stopping.is_set() or not mine or not self.free:
            return False
        try:
            self._put_in_line(self._pool, partial(self.hear, bell))
        except RuntimeError:  # the pool is closing
            return False
        return True

    def _put_in_line(self, pool: Executor, what: Callable[[], None]) -> None:
        pool.submit(self._begin, what)
        with self._lock:
            self._in_line += 1

    def _begin(self, what: Callable[[], None]) -> None:
        with self._lock:
            self._in_line -= 1
        self._edge(what)

    def hear(self, bell: Bell) -> None:
        match bell.task:
            case "runs.tasks.look":
                self.look(bell.subject)
            case "runs.tasks.look_around":
                agent_calls.look_around(bell.subject)
            case "runs.tasks.send":
                self.sender.wake()
            case _:
                self.look_for_work(int(bell.subject))

    def _work(self, lease: Lease) -> None:
        step = Step(lease, self.engine, host_id=self.host_id)
        self.lease_thread.hold(step)
        if self.stopping.is_set():
            step.halt.set(Why.STOPPING)
        try:
            self._advance(step)
        finally:
            step.settle()
            self.lease_thread.let_go(step)
        if step.over and step.attempt.sandbox_state != SandboxState.NONE and step.attempt.host_id == self.host_id:
            release_connection()
            clean_up(self.engine, step.attempt)

    def _advance(self, step: Step) -> None:
        """One step, and whatever ends it, in the database."""
        try:
            endings.check_wanted(step)
            endings.check_host(step, self.host_id)
            engine.advance(step)
        except LeaseLost:
            log.info("%s goes on elsewhere", step.lease.run_id)
        except DatabaseError:
            log.exception("%s: the database failed; the lease ends when it answers", step.lease.run_id)
            self.lease_thread.give_up(step)
        except Exception as error:  # noqa: BLE001 - the edge of the process: every run ends with a reason
            self._end_early(step, error)

    def _end_early(self, step: Step, error: Exception) -> None:
        try:
            step.settle()
            endings.end_early(step, error)
        except LeaseLost:
            log.info("%s goes on elsewhere", step.lease.run_id)
        except (DatabaseError, SandboxError):
            log.exception("%s: could not be ended; the lease ends when the database answers", step.lease.run_id)
            self.lease_thread.give_up(step)

    # --- threads ---------------------------------------------------------------------------------------------

    def _sweep(self) -> None:
        while not self.stopping.is_set():
            self._edge(lambda: sweep.sweep(self))
            self.stopping.wait(sweep.EVERY * random.uniform(0.8, 1.2))  # noqa: S311 - jitter

    def _edge(self, what: Callable[[], None]) -> None:
        try:
            what()
        except Exception:
            log.exception("%s", what)
        finally:
            connection.close_if_unusable_or_obsolete()
            release_connection()

    def _warm(self) -> None:
        try:
            llm.warm()
        except Exception:
            log.exception("the model libraries could not be loaded")

    def _hold_owner_file(self) -> None:
        """Locked for as long as this process lives, frozen or not: whoever can lock it knows that it is dead."""
        held = private_files.locked(self._owners / f"{self.owner}.owner")
        held.__enter__()
        self._held = held

    def _seen(self) -> None:
        facts = {"name": socket.gethostname(), "capacity": self.threads, "last_seen_at": clock.now()}
        Host.objects.update_or_create(pk=self.host_id, defaults=facts)

    def dead_owners(self) -> int:
        """End the leases of owners on this host that died; how many."""
        return leases.expire_of_dead(self._owners, self.owner)


_current: Worker | None = None


def current() -> Worker:
    """This process's worker, started when the first asks."""
    global _current  # noqa: PLW0603 - one per process is the point
    if _current is None:
        make_engine = import_string(settings.SANDBOX_ENGINE)
        _current = Worker(Path(settings.HOME), threads=settings.WORKER_THREADS, make_engine=make_engine)
        _current.start()
    return _current
