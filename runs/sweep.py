"""The sweep: what doorbells, beat and crashed processes left lying. A thread in every worker; needs only the database.

What it finds it hands to this worker directly, at most as many as there are free threads.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from typing import Protocol

from django.conf import settings
from django.db.models import Count, Q

from agents import clock
from agents.models import Agent, Schedule
from runs import agent_calls, approvals, lifecycle, line, locks, outgoing, queue, slots, ticks, trigger_waits
from runs.builds import Builder
from runs.models import TERMINAL, Attempt, Host, Run, SandboxState, Status, WaitReason
from runs.sandbox.base import Engine, EngineDown, SandboxError
from runs.sandbox.cleanup import clean_up

log = logging.getLogger(__name__)

EVERY = 2.0  # seconds
HEARD = timedelta(seconds=1)  # what a doorbell has before the sweep looks itself
PUT_AWAY = (SandboxState.RUNNING, SandboxState.STARTING)  # starting: putting it away was begun, and failed
LEFT_ALONE = timedelta(seconds=5)  # an ended run's own worker is removing its sandbox
LOOK_AT_ENGINE_EVERY = 60.0  # seconds
TIDY_LOCKS_EVERY = 30.0  # seconds
FORGET_MESSAGES_EVERY = 60.0  # seconds
LOOK_AT_NETWORKS_EVERY = 15.0  # seconds


class Worker(Protocol):
    """What the sweep needs of the worker it runs in."""

    host_id: str
    engine: Engine
    builder: Builder

    @property
    def free(self) -> int: ...
    def look(self, run_id: str) -> None: ...
    def look_for_work(self, agent_id: int) -> None: ...
    def hand(self, what: Callable[[], None], key: object) -> None: ...
    def dead_owners(self) -> int: ...


def sweep(worker: Worker) -> None:
    """One round. Each part stands alone: a run that cannot be handled must not stop the others."""
    for part in (
        end_leases_of_the_dead, wake_the_due, expire_approvals, fire_schedules, hand_steps, hand_work,
        remove_leftovers, purge_deleted, tend_images, tidy_locks, settle_calls,
        resume_waits, give_slots_back, keep_networks, forget_messages, *_others,
    ):  # fmt: skip
        try:
            part(worker)
        except Exception:
            log.exception("sweep: %s", part.__name__)


Part = Callable[[Worker], None]
_others: list[Part] = []


def also(part: Part) -> Part:
    """A part of every round from now on, for what stands above this package."""
    _others.append(part)
    return part


_spared: list[Callable[[str], bool]] = []


def spare(is_in_use: Callable[[str], bool]) -> Callable[[str], bool]:
    """Sandboxes that are no run's and are left alone all the same: those whose name `is_in_use` says yes to."""
    _spared.append(is_in_use)
    return is_in_use


def end_leases_of_the_dead(worker: Worker) -> None:
    """Of processes on this host that are gone for certain."""
    worker.dead_owners()


def wake_the_due(worker: Worker) -> None:
    """Runs whose pause is over."""
    due = Run.objects.filter(status=Status.WAITING, wake_at__lte=clock.now())
    for run_id, reason in due.order_by("wake_at").values_list("pk", "wait_reason")[:100]:
        lifecycle.wake(run_id, WaitReason(reason))


def expire_approvals(worker: Worker) -> None:
    """Calls that nobody has allowed in time are refused."""
    approvals.expire_due()


def fire_schedules(worker: Worker) -> None:
    """Ticks that are due, whether or not beat rang for them."""
    now = clock.now()
    schedules = Schedule.objects.filter(agent__active=True).order_by("agent", "index")
    for schedule in schedules.select_related("agent__version", "agent__workspace"):
        try:
            ticks.fire(schedule, now)
        except Exception:
            log.exception("agent %s: %s", schedule.agent.name, schedule)


def hand_steps(worker: Worker) -> None:
    """Leases that ended, and steps whose doorbell was lost: this host's, and those of hosts that died."""
    now = clock.now()
    alive = Host.objects.filter(last_seen_at__gt=now - line.HOST_IS_DEAD).exclude(pk=worker.host_id)
    # Let go in the future: the clock was set back since.
    quiet = Q(lease_expires_at__lte=now - HEARD) | Q(lease_owner="", lease_expires_at__gt=now + HEARD)
    idle = Run.objects.filter(quiet, status=Status.PROCESSING, has_slot=True)
    for run_id in idle.exclude(host__in=alive).order_by("lease_expires_at").values_list("pk", flat=True)[: worker.free]:
        worker.hand(partial(worker.look, run_id), run_id)


def hand_work(worker: Worker) -> None:
    """Agents with somebody in line and a slot free."""
    # Two queries: no index serves an OR of the two, and this is asked every two seconds.
    open_lines = Q(agent__active=True, agent__paused_at=None, workspace__paused_at=None) & (
        Q(agent__probe_at=None) | Q(agent__probe_at__lte=clock.now())
    )
    waiting = counted_by_agent(Q(status=Status.PENDING) & open_lines)
    waiting += counted_by_agent(Q(status=Status.PROCESSING, has_slot=False))
    busy = counted_by_agent(line.TAKEN & Q(agent__in=waiting))
    room = worker.free
    # In any order: were it always the same, a full workspace could take the room of those behind it for ever.
    for agent in Agent.objects.filter(pk__in=waiting).order_by("?"):
        for seat in range(min(room, waiting[agent.pk], agent.scale - busy[agent.pk])):
            worker.hand(partial(worker.look_for_work, agent.pk), (agent.pk, seat))
            room -= 1


def counted_by_agent(runs: Q) -> Counter[int]:
    return Counter(dict(Run.objects.filter(runs).order_by().values_list("agent").annotate(Count("pk"))))


def remove_leftovers(worker: Worker) -> None:
    """Sandboxes that stand and should not: of ended runs, of long parked ones, and those no row knows."""
    now = clock.now()
    standing = Attempt.objects.filter(host_id=worker.host_id, has_workspace=True)
    ended = Q(ended_at__lt=now - LEFT_ALONE) | Q(ended_at__gt=now + LEFT_ALONE)  # by a clock that was set back since
    for attempt in standing.filter(ended)[:50]:
        worker.hand(partial(clean_up_and_purge, worker.engine, attempt), attempt.pk)
    parked = standing.filter(
        sandbox_state__in=PUT_AWAY, run__status=Status.WAITING, run__has_slot=False,
        run__waiting_since__lt=now - timedelta(seconds=settings.PARKED_GRACE),
    )  # fmt: skip
    for attempt in parked[:50]:
        worker.hand(partial(put_away, worker.engine, attempt), attempt.pk)
    if is_time(worker, "engine", LOOK_AT_ENGINE_EVERY):
        worker.hand(partial(remove_unknown, worker.engine), "engine")


def clean_up_and_purge(engine: Engine, attempt: Attempt) -> None:
    if clean_up(engine, attempt):
        queue.purge(attempt.run_id)


def put_away(engine: Engine, attempt: Attempt) -> None:
    """Remove a parked run's container; its workspace stays, and waking starts a new container on it."""
    fits = Q(pk=attempt.pk, sandbox_state__in=PUT_AWAY, run__status=Status.WAITING)
    if Attempt.objects.filter(fits).update(sandbox_state=SandboxState.STARTING, sandbox_id=""):
        engine.remove(attempt.sandbox_name)
        Attempt.objects.filter(pk=attempt.pk, sandbox_state=SandboxState.STARTING, run__status=Status.WAITING).update(
            sandbox_state=SandboxState.GONE
        )


def remove_unknown(engine: Engine) -> None:
    """Sandboxes of this host that belong to no live run: their process died between asking and storing."""
    try:
        names = engine.names()
    except SandboxError:
        return
    for name in names:
        if any(is_in_use(name) for is_in_use in _spared):
            continue
        run_id, _, number = name.removeprefix("agentfleet-").rpartition("-")
        live = Run.objects.filter(pk=run_id, attempts__number=number if number.isdigit() else 0)
        if not live.exclude(status__in=TERMINAL, finished_at__lt=clock.now() - LEFT_ALONE).exists():
            log.warning("removing sandbox %s: no live run has it", name)
            engine.remove(name)
            engine.remove_workspace(name)


def tend_images(worker: Worker) -> None:
    """Those that agents and runs of this host need."""
    if worker.builder.has_work:
        worker.hand(worker.builder.tend, "images")


def purge_deleted(worker: Worker) -> None:
    """Runs somebody deleted, once nothing of them stands."""
    gone = Run.objects.filter(delete_requested_at__isnull=False, status__in=TERMINAL)
    for run_id in gone.order_by("delete_requested_at").values_list("pk", flat=True)[:50]:
        queue.purge(run_id)


def settle_calls(worker: Worker) -> None:
    """Callers that are parked for a call which is over go on; what a canceled caller has called is canceled."""
    agent_calls.sweep()


def resume_waits(worker: Worker) -> None:
    """Runs whose event has come."""
    trigger_waits.sweep()


def give_slots_back(worker: Worker) -> None:
    """Slots that were lent while a command waited, and are wanted again."""
    slots.sweep()


def tidy_locks(worker: Worker) -> None:
    """Those that count for nothing any more."""
    if is_time(worker, "locks", TIDY_LOCKS_EVERY):
        locks.sweep()


def forget_messages(worker: Worker) -> None:
    """To others, delivered or given up long ago."""
    if is_time(worker, "messages", FORGET_MESSAGES_EVERY):
        outgoing.purge()


def keep_networks(worker: Worker) -> None:
    """What filters the sandboxes of this host, also while none of them is asked for anything."""
    if is_time(worker, "networks", LOOK_AT_NETWORKS_EVERY):
        worker.hand(partial(put_filters_back, worker.engine), "networks")


def put_filters_back(engine: Engine) -> None:
    try:
        engine.keep_networks()
    except EngineDown:
        return
    except SandboxError as error:
        log.error("sandboxes of this host may reach what they should not: %s", error)  # noqa: TRY400 - a sentence


def is_time(worker: Worker, what: str, every: float) -> bool:
    """Whether it is more than `every` seconds since this last said so."""
    now = time.monotonic()
    due = now - _last.get((worker.host_id, what), 0.0) > every
    if due:
        _last[worker.host_id, what] = now
    return due


_last: dict[tuple[str, str], float] = {}
