"""This process as the fleet sees it: an owner of leases on a host, the steps it is working on, and their end.

Three threads of its own beside the pool: one renews leases and reads wishes, one sweeps, one loads heavy imports
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
from datetime import timedelta
from functools import partial
from pathlib import Path
from secrets import token_hex

from django.conf import settings
from django.db import DatabaseError, connection
from django.utils.module_loading import import_string
from pydantic import ValidationError

from agents import clock, private_files
from agents.ids import new_id
from runs import (
    agent_calls,
    bells,
    builds,
    command_agent,
    engine,
    inbox,
    leases,
    lifecycle,
    limits,
    llm,
    secrets,
    signals,
    sweep,
)
from runs.bells import Bell
from runs.db import release_connection
from runs.halt import Halted, Why
from runs.images import ImageBuilding
from runs.leases import Lease, LeaseLost
from runs.llm import ModelError, ModelUnavailable
from runs.models import Host, Run, SandboxState, WaitReason
from runs.sandbox.base import Engine, EngineDown, SandboxError, SandboxGone
from runs.sandbox.cleanup import clean_up, stop_and_remove
from runs.step import Step
from runs.transcript import Corrupt

log = logging.getLogger(__name__)

TICK = 0.5  # seconds between looks at deadlines
GONE_AFTER = 7.5  # seconds from SIGTERM to the end of this process, whatever hangs
MACHINERY_WAITS = 12  # in a row without progress, before the run gives up
LONGEST_PAUSE = 300.0  # seconds


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
        self._lock = threading.Lock()
        self._steps: dict[str, Step] = {}
        self._given_up: list[Lease] = []  # of steps that the database failed in
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
        threading.Thread(target=self._keep_leases, name="leases", daemon=True).start()

    def work_with(self, pool: Executor) -> None:
        """Take work: the sweep hands what it finds to this pool, and this process's own bells go there."""
        self._pool = pool
        bells.answer_here(self.answer)
        threading.Thread(target=self._sweep, name="sweep", daemon=True).start()
        threading.Thread(target=self._warm, name="warm", daemon=True).start()

    def stop(self) -> None:
        """Take nothing more, end every step at its next safe point; be gone soon whatever happens."""
        self.stopping.set()
        for step in self._active():
            step.halt.set(Why.STOPPING)
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
        return max(0, self.threads - len(self._steps) - self._in_line)

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
        step = self._steps.get(run_id)
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
            case _:
                self.look_for_work(int(bell.subject))

    def _work(self, lease: Lease) -> None:
        step = Step(lease, self.engine, host_id=self.host_id)
        with self._lock:
            replaced = self._steps.get(lease.run_id)
            self._steps[lease.run_id] = step
        if replaced is not None:
            replaced.halt.set(Why.LOST)
        if self.stopping.is_set():
            step.halt.set(Why.STOPPING)
        try:
            self._advance(step)
        finally:
            step.settle()
            with self._lock:
                if self._steps.get(lease.run_id) is step:
                    del self._steps[lease.run_id]
        if step.over and step.attempt.sandbox_state != SandboxState.NONE and step.attempt.host_id == self.host_id:
            release_connection()
            clean_up(self.engine, step.attempt)

    def _advance(self, step: Step) -> None:
        """One step, and whatever ends it, in the database."""
        try:
            check_wanted(step)
            check_host(step, self.host_id)
            engine.advance(step)
        except LeaseLost:
            log.info("%s goes on elsewhere", step.lease.run_id)
        except DatabaseError:
            log.exception("%s: the database failed; the lease ends when it answers", step.lease.run_id)
            self._give_up(step)
        except Exception as error:  # noqa: BLE001 - the edge of the process: every run ends with a reason
            self._end_early(step, error)

    def _end_early(self, step: Step, error: Exception) -> None:
        try:
            step.settle()
            end_early(step, error)
        except LeaseLost:
            log.info("%s goes on elsewhere", step.lease.run_id)
        except (DatabaseError, SandboxError):
            log.exception("%s: could not be ended; the lease ends when the database answers", step.lease.run_id)
            self._give_up(step)

    def _give_up(self, step: Step) -> None:
        with self._lock:
            self._given_up.append(step.lease)

    # --- threads ---------------------------------------------------------------------------------------------

    def _keep_leases(self) -> None:
        renewed_at = seen_at = time.monotonic()
        while True:
            time.sleep(TICK)
            now = time.monotonic()
            # Frozen or cut off: somebody else may have gone on. Checked before renewing, which would hide it.
            if now - renewed_at > leases.GIVE_UP_AFTER:
                self._halt_all(Why.LOST)
                renewed_at = now
            self._halt_overdue()
            if now - renewed_at < leases.RENEW_EVERY:
                continue
            try:
                self._renew()
                renewed_at = now
                self.end_given_up()
                if now - seen_at >= leases.RENEW_EVERY:
                    self._seen()
                    seen_at = now
            except Exception:
                log.exception("leases could not be renewed")
            finally:
                connection.close()

    def end_given_up(self) -> None:
        """End the leases of steps that the database failed in: it answers again, and nobody works on them.

        Going on counts as a takeover, so what fails for another reason than an outage comes to its end.
        """
        with self._lock:
            ended = list(self._given_up)
        leases.end(ended)
        with self._lock:
            self._given_up = self._given_up[len(ended) :]

    def _renew(self) -> None:
        steps = {step.lease.run_id: step for step in self._active()}
        held = leases.renew(self.owner, steps.keys())
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

    def _halt_overdue(self) -> None:
        now = clock.now()
        for step in self._active():
            if (why := step.overdue(now)) is not None:
                step.halt.set(why)

    def _halt_all(self, why: Why) -> None:
        for step in self._active():
            step.halt.set(why)

    def _active(self) -> list[Step]:
        with self._lock:
            return list(self._steps.values())

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


def check_wanted(step: Step) -> None:
    """Raises what speaks against going on, before anything is done."""
    if step.run.cancel_requested_at is not None:
        raise Halted(Why.CANCEL)
    check_definition(step)
    if step.run.takeovers > leases.TAKEOVERS:
        raise limits.Over("WORKER_LOST", f"{leases.TAKEOVERS} workers were lost in a row at this point")


def check_definition(step: Step) -> None:
    """Raises Corrupt for one that can no longer be read."""
    try:
        _ = step.spec
    except ValidationError as error:
        raise Corrupt(f"the definition of {step.run.agent.name} that the run has cannot be read: {error}") from error


def check_host(step: Step, host_id: str) -> None:
    """A run whose host died goes on here, if nothing of it stood there. Raises SandboxGone, LeaseLost."""
    if step.attempt.host_id == host_id:
        return
    if step.attempt.has_workspace:
        raise SandboxGone(f"host {step.attempt.host_id} is gone, and the run's sandbox and workspace with it")
    step.move_to(host_id)


def end_early(step: Step, error: Exception) -> None:
    """What each way of ending a step early means for the run. Raises LeaseLost, SandboxError."""
    match error:
        case Halted(why=Why.CANCEL):
            end_as_wished(step)
        case Halted(why=Why.DEADLINE | Why.IDLE as why):
            give_up(step, limits.timeout(step.run) if why is Why.DEADLINE else limits.idle(step.run, step.spec))
        case Halted(why=Why.STOPPING | Why.INTERRUPT):
            step.release()
        case Halted():
            log.info("%s goes on elsewhere", step.lease.run_id)
        case Corrupt() | secrets.Unusable():
            step.fail(error.code, str(error))
        case ModelError():
            step.give_up(error.code, str(error), lost_requests=error.lost_requests)
        case ModelUnavailable() | EngineDown() | ImageBuilding():
            wait_for_machinery(step, error)
        case limits.Over() | SandboxError():
            give_up(step, error)
        case _:
            log.error("%s: unexpected", step.lease.run_id, exc_info=error)
            step.fail("INTERNAL_ERROR", f"{type(error).__name__}: {error}")


def end_as_wished(step: Step) -> None:
    """The run's own wish to be shut down leaves its commands no time; a person's wish to cancel it does."""
    wish = signals.shutdown_wish(step.lease.run_id)
    attempt = step.attempt
    release_connection()
    if wish is None:
        stop_and_remove(step.engine, attempt)
        step.cancel()
    else:
        step.engine.remove(attempt.sandbox_name)
        step.shut_down(wish)


def give_up(step: Step, error: limits.Over | SandboxError) -> None:
    """A command agent that is out of time ends as `timeout` ends a program."""
    timed_out = step.spec.kind == "command" and error.code in {"TIMEOUT", "IDLE_TIMEOUT"}
    step.give_up(error.code, str(error), exit_code=command_agent.TIMED_OUT if timed_out else None)


def wait_for_machinery(step: Step, error: ModelUnavailable | EngineDown | ImageBuilding) -> None:
    match error:
        case ImageBuilding():
            step.wait_for_image(error.needed)
        case ModelUnavailable():
            pause_or_fail(step, WaitReason.RATE_LIMIT, "MODEL_UNAVAILABLE", error)
        case EngineDown():
            pause_or_fail(step, WaitReason.RETRY, error.code, error)


def pause_or_fail(step: Step, reason: WaitReason, code: str, error: EngineDown | ModelUnavailable) -> None:
    """The machinery may recover: park the run, longer each time; after enough of that it has failed."""
    lost, retry_after = None, 0.0
    if isinstance(error, ModelUnavailable):
        lost, retry_after = error.lost_requests, error.retry_after or 0.0
    waits = step.run.machinery_waits
    if waits >= MACHINERY_WAITS:
        step.give_up(code, f"{error} (after {waits} tries)", lost_requests=lost)
        return
    pause = max(retry_after, min(LONGEST_PAUSE, 5.0 * 2**waits))
    note = {"code": code, "message": str(error), "seconds": round(pause, 1)}
    step.pause(reason, note, wake_at=clock.now() + timedelta(seconds=pause), lost_requests=lost)


_current: Worker | None = None


def current() -> Worker:
    """This process's worker, started when the first asks."""
    global _current  # noqa: PLW0603 - one per process is the point
    if _current is None:
        make_engine = import_string(settings.SANDBOX_ENGINE)
        _current = Worker(Path(settings.HOME), threads=settings.WORKER_THREADS, make_engine=make_engine)
        _current.start()
    return _current
