"""The watcher: looks at the fleet from outside of what it looks at, and raises an alert where something is missing.

It is threads of every web process and needs neither Redis nor a worker. Several of them do no harm: an alert is
one row, and each message is taken by one. A watcher says that something did not happen only if it was there itself
for as long as that takes: after a restart, or when its machine has slept, it begins to count anew.
"""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime, timedelta
from itertools import chain

from django.conf import settings
from django.db import DatabaseError, connection
from django.db.models import Min, Q, QuerySet
from django.db.models.functions import Coalesce
from kombu.exceptions import OperationalError

from agents import clock
from agents.models import Agent
from runs import alerts, canaries, lateness, line, notices
from runs.db import release_connection
from runs.models import Host, Run, Status

log = logging.getLogger(__name__)

EVERY = 5.0  # seconds between two looks
AWAY = timedelta(seconds=30)  # longer between two looks, and the watcher itself was stopped
STUCK = timedelta(seconds=30)  # a head of a line that could begin for this long: a claim takes milliseconds


_others: list[Callable[[], None]] = []


def also(what: Callable[[], None]) -> Callable[[], None]:
    """Done every second, or so, for what stands above this package."""
    _others.append(what)
    return what


def do_others() -> None:
    for what in _others:
        what()


def start() -> None:
    """Watch, and tell, for as long as this process lives."""
    watched = (("watch", Watcher().look, EVERY), ("tell", notices.Teller().tell, EVERY), ("others", do_others, 1.0))
    for name, what, every in watched:
        threading.Thread(target=_keep_on, args=(what, every), name=name, daemon=True).start()


def _keep_on(what: Callable[[], None], every: float) -> None:
    while True:
        time.sleep(every * random.uniform(0.8, 1.2))  # noqa: S311 - jitter: several webs need not look at once
        try:
            what()
        except DatabaseError as error:
            log.warning("watch: the database does not answer (%s)", type(error).__name__)
        except Exception:
            log.exception("watch")
        finally:
            connection.close_if_unusable_or_obsolete()
            release_connection()


class Watcher:
    """Remembers since when it has been looking, and which lines did not move between its looks."""

    def __init__(self) -> None:
        self.since = self._looked_at = clock.now()
        self._heads: dict[int, tuple[str, datetime]] = {}  # agent → its line's first, and since when it stands there

    def look(self) -> None:
        """One round. Raises DatabaseError; a rule that fails otherwise does not stop the others."""
        now = clock.now()
        if abs(now - self._looked_at) > AWAY:
            self.since = now
            self._heads.clear()
        self._looked_at = now
        hosts = canaries.live_hosts(now)
        for rule in (self._schedules, self._fleet, self._queues, self._runs, self._lines):
            try:
                rule(hosts, now)
            except DatabaseError:
                raise
            except Exception:
                log.exception("watch: %s", rule.__name__)

    def _settle(self, kind: str, found: Mapping[str, str], after: timedelta) -> None:
        watched_enough = clock.now() - self.since >= after
        alerts.settle(kind, found if watched_enough else {}, undecided=found)

    def _schedules(self, hosts: Collection[Host], now: datetime) -> None:
        self._settle(alerts.SCHEDULE_LATE, lateness.late_schedules(now), lateness.grace())

    def _fleet(self, hosts: Collection[Host], now: datetime) -> None:
        deaf = not hosts and lateness.able().exists()
        said = f"no worker has been heard of for {line.HOST_IS_DEAD.seconds} s: nothing starts; see the workers' logs"
        self._settle(alerts.FLEET_DEAF, {"fleet": said} if deaf else {}, line.HOST_IS_DEAD)

    def _queues(self, hosts: Collection[Host], now: datetime) -> None:
        try:
            canaries.send(hosts, now)
        except OperationalError as error:  # seen by `readyz` at once, and by the canaries that nobody hears
            log.info("watch: the broker does not answer (%s)", error)
        judged = canaries.queues_of(canaries.with_room(hosts))
        others = canaries.others(judged)
        alerts.settle(alerts.QUEUE_DEAF, canaries.deaf_queues(judged, now), undecided=others)
        if others:
            canaries.forget_the_gone(now)

    def _runs(self, hosts: Collection[Host], now: datetime) -> None:
        self._settle(alerts.RUN_SILENT, silent_runs(now), watchdog())

    def _lines(self, hosts: Collection[Host], now: datetime) -> None:
        heads = {agent.pk: (agent, head) for agent, head in idle_heads(now)} if canaries.with_room(hosts) else {}
        known = self._heads
        self._heads = {
            pk: known[pk] if known.get(pk, ("",))[0] == head.pk else (head.pk, now) for pk, (_, head) in heads.items()
        }
        stuck = {pk for pk, (_, since) in self._heads.items() if now - since >= STUCK}
        found = {str(pk): stuck_line(*heads[pk]) for pk in stuck}
        alerts.settle(alerts.LINE_STUCK, found, undecided={str(pk) for pk in heads})


def watchdog() -> timedelta:
    return timedelta(seconds=settings.WATCHDOG_SECONDS)


def silent_runs(now: datetime) -> dict[str, str]:
    """Runs at work that have shown nothing for too long, each with what to say."""
    at_work = Run.objects.filter(status=Status.PROCESSING, has_slot=True, slot_lent_at=None)
    silent = at_work.annotate(last=Coalesce("progress_at", "started_at")).filter(last__lt=now - watchdog())
    return {
        run_id: f"run {run_id} of agent {name} is at work and has shown nothing since {last:%Y-%m-%d %H:%M:%S} UTC: "
        "see its page; cancel it if it hangs"
        for run_id, name, last in silent.order_by().values_list("pk", "agent__name", "last")
    }


def idle_heads(now: datetime) -> Iterator[tuple[Agent, Run]]:
    """Agents whose line waits for too long although its first could begin at once, with that first."""
    oldest = [_oldest(Q(status=Status.PENDING)), _oldest(Q(status=Status.PROCESSING, has_slot=False))]
    waiting = {agent for agent, since in chain(*oldest) if since < now - watchdog()}
    for agent in Agent.objects.filter(pk__in=waiting, broken_at=None).select_related("workspace"):
        head = first_of(agent) if line.has_room(agent) else None
        if head is not None:
            yield agent, head


def _oldest(runs: Q) -> QuerySet[Run, tuple[int, datetime]]:
    in_line = Run.objects.filter(runs, delete_requested_at=None).order_by()
    return in_line.values_list("agent").annotate(Min("queued_at"))


def first_of(agent: Agent) -> Run | None:
    """A woken run goes on whatever the agent may begin; one whose key or session is at work waits for good reason."""
    woken = Run.objects.filter(agent=agent, status=Status.PROCESSING, has_slot=False).order_by("queued_at", "pk")
    return woken.first() or (line.first_pending(agent) if line.may_begin(agent) else None)


def stuck_line(agent: Agent, head: Run) -> str:
    return (
        f"agent {agent.name} has a slot free and does not begin {head.pk}, in line since "
        f"{head.queued_at:%Y-%m-%d %H:%M:%S} UTC: see the workers' logs"
    )
