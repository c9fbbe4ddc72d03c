"""A message through every real queue and back: a worker may live, renew its leases and hear nothing.

A watcher takes the queue's next number and sends it; whichever worker hears it says so in the queue's row. The
worker of the host whose queue it was looks at its engine then, which no other process can see.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from celery import current_app
from django.conf import settings
from django.db.models import Count, F

from agents import clock
from runs import alerts, line, ticks
from runs.db import release_connection
from runs.events import isoformat
from runs.models import Canary, Host, Run
from runs.sandbox.base import Engine, SandboxError

TASK = "runs.tasks.hear_canary"
PAUSE = timedelta(seconds=30)  # that a message is overdue, and no watcher was there to send it
FORGOTTEN = timedelta(days=1)  # the rows of a host that has been away for this long are removed
# One try of a second: kombu itself would try for four. A broker that is away is for `readyz` to say.
AT_ONCE = {"socket_timeout": 1, "socket_connect_timeout": 1, "max_retries": 0}


@dataclass(frozen=True)
class Heard:
    """How one queue is listened to. `unheard` counts the seconds, at the least, of the oldest message under way."""

    queue: str
    unheard: float
    ago: float | None  # seconds since one was heard; None: none ever was

    @property
    def deaf(self) -> bool:
        return self.unheard > settings.CANARY_WITHIN

    @property
    def stale(self) -> bool:
        """None was heard for so long that nobody can have sent one: no watcher watches, or nothing can be stored."""
        return self.ago is not None and self.ago > settings.CANARY_EVERY + settings.CANARY_WITHIN

    @classmethod
    def of(cls, canary: Canary, now: datetime) -> Heard:
        behind = canary.number - canary.heard_number
        unheard = 0.0
        if behind and canary.sent_at:  # those before the last were sent no closer together than this
            unheard = (now - canary.sent_at).total_seconds() + (behind - 1) * settings.CANARY_EVERY
        ago = (now - canary.heard_at).total_seconds() if canary.heard_at else None
        return cls(canary.queue, unheard, ago)


def live_hosts(now: datetime) -> list[Host]:
    return list(Host.objects.filter(last_seen_at__gt=now - line.HOST_IS_DEAD))


def queues_of(hosts: Collection[Host]) -> list[str]:
    """The queues that somebody should be listening to."""
    return [ticks.FLEET_QUEUE, *(host.queue for host in hosts)] if hosts else []


def hearings(queues: Iterable[str], now: datetime) -> list[Heard]:
    return [Heard.of(canary, now) for canary in Canary.objects.filter(pk__in=queues).order_by("pk")]


def send(hosts: Collection[Host], now: datetime) -> None:
    """Send what is due, at most one a queue. Raises what the broker raises, after some two seconds at most."""
    queues = queues_of(hosts)
    known = Canary.objects.in_bulk(queues)
    if missing := [Canary(queue=queue) for queue in queues if queue not in known]:
        Canary.objects.bulk_create(missing, ignore_conflicts=True)
        known = Canary.objects.in_bulk(queues)
    numbers = {queue: number for queue in queues if (number := take_number(known[queue], now)) is not None}
    if numbers:
        publish(numbers, now)


def take_number(canary: Canary, now: datetime) -> int | None:
    """The next to send. None: it is not due, or another watcher has taken it.

    What was sent before a pause says nothing: whoever should have heard it may have been stopped with the watcher.
    """
    every = timedelta(seconds=settings.CANARY_EVERY)
    since_last = abs(now - canary.sent_at) if canary.sent_at else None
    if since_last is not None and since_last < every:
        return None
    forgiven = {"heard_number": F("number")} if since_last is None or since_last > every + PAUSE else {}
    mine = Canary.objects.filter(pk=canary.pk, number=canary.number)
    taken = mine.update(number=F("number") + 1, sent_at=now, **forgiven)
    return canary.number + 1 if taken else None


def publish(numbers: dict[str, int], now: datetime) -> None:
    with current_app.connection_for_write(transport_options=AT_ONCE) as connection:
        for queue, number in numbers.items():
            current_app.send_task(
                TASK,
                args=(queue, number, isoformat(now)),
                queue=queue,
                connection=connection,
                expires=settings.CANARY_WITHIN,
                retry=False,
                ignore_result=True,
            )


def hear(queue: str, number: int, sent_at: datetime) -> None:
    """A worker has heard it. Earlier ones count as heard with it: messages may be lost."""
    now = clock.now()
    took = max(0, round((now - sent_at).total_seconds() * 1000))
    heard = Canary.objects.filter(pk=queue, heard_number__lt=number, number__gte=number)
    heard.update(heard_number=number, heard_at=now, milliseconds=took)


def look_at_engine(engine: Engine, host_id: str) -> None:
    """One that hangs holds this thread until its client gives up, and no connection of ours."""
    release_connection()
    try:
        engine.ping()
    except SandboxError as error:
        alerts.begin(alerts.ENGINE_DOWN, host_id, f"the container engine of host {host_id} does not answer: {error}")
    else:
        alerts.end(alerts.ENGINE_DOWN, host_id)


def deaf_queues(queues: Iterable[str], now: datetime) -> dict[str, str]:
    """Those of them that nobody hears, each with what to say."""
    return {
        heard.queue: f"nobody has heard queue {heard.queue} for {heard.unheard:.0f} s, though its worker lives: "
        "look at the broker (GET /readyz) and at the worker's log, then start the worker again"
        for heard in hearings(queues, now)
        if heard.deaf
    }


def with_room(hosts: Collection[Host]) -> list[Host]:
    """Those whose threads cannot all be busy with runs: a message may wait for one, and nothing is wrong."""
    seated = Run.objects.filter(has_slot=True, host__in=hosts).order_by().values_list("host")
    taken = dict(seated.annotate(Count("pk")))
    return [host for host in hosts if taken.get(host.pk, 0) < host.capacity]


def forget_the_gone(now: datetime) -> None:
    """Remove what is kept of hosts that have been away for a day, or for good."""
    here = Host.objects.filter(last_seen_at__gt=now - FORGOTTEN).values_list("pk", flat=True)
    kept = [ticks.FLEET_QUEUE, *(Host(pk=pk).queue for pk in here)]
    for queue in Canary.objects.exclude(pk__in=kept).values_list("pk", flat=True):
        Canary.objects.filter(pk=queue).delete()
        alerts.end(alerts.QUEUE_DEAF, queue)
        alerts.end(alerts.ENGINE_DOWN, queue.removeprefix("host."))


def others(queues: Collection[str]) -> list[str]:
    """The queues with a row that are not among these."""
    return list(Canary.objects.exclude(pk__in=queues).values_list("pk", flat=True))
