"""Doorbells and notifications: hints that never raise, never block and may be lost.

Callers put a hint into a bounded queue when their transaction commits; one thread per process carries it to
Redis. What is lost costs the sweep's two seconds or a page's next look, never a run or a line.

A bell that the ringing process can answer itself, a worker's for the next step of its own run, goes to its own
pool at once: half of the way through Redis and back is longer than the step's own writes, and a run that is
under way does not notice when Redis is gone.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from dataclasses import dataclass
from datetime import timedelta
from functools import partial

from channels.layers import get_channel_layer
from django.conf import settings
from django.db import connection, transaction
from django.db.models import Count
from kombu import Connection

from agents import clock
from runs import loop
from runs.models import Host, Run

log = logging.getLogger(__name__)

HEARD_OF = timedelta(seconds=15)  # a host silent for longer gets no bells
EXPIRES = 30  # seconds a doorbell is worth answering
AT_MOST_EVERY = 0.1  # seconds between two notifications of one run
AT_ONCE = 16  # notifications on their way: each takes a connection, and a hung Redis keeps it for seconds


@dataclass(frozen=True)
class Bell:
    """ "Look now": at a run on its host, or at an agent's line wherever there is room."""

    task: str
    subject: str
    host: str | None


@dataclass(frozen=True)
class Note:
    """ "Run R has reached event N."""

    run: str
    number: int


def ring_run(run_id: str, host_id: str | None) -> None:
    """When this transaction commits: somebody on the run's host, look at the run."""
    _when_committed(Bell("runs.tasks.look", run_id, host_id))


def ring_agent(agent_id: int) -> None:
    """When this transaction commits: somebody with room, look whether this agent has work."""
    _when_committed(Bell("runs.tasks.look_for_work", str(agent_id), None))


def ring_around(run_id: str) -> None:
    """When this transaction commits: somebody, look what the run's state means for others, and theirs for it."""
    _when_committed(Bell("runs.tasks.look_around", run_id, None))


def ring_sender() -> None:
    """When this transaction commits: somebody, look what is to be sent to others."""
    _when_committed(Bell("runs.tasks.send", "", None))


def notify(run_id: str, number: int) -> None:
    """When this transaction commits: whoever watches the run, read on to `number`."""
    _when_committed(Note(run_id, number))


def answer_here(answer: Callable[[Bell], bool] | None) -> None:
    """From now on this process's bells are first offered to `answer`: True if it takes one. None: no more."""
    _carrier.answer = answer


def run_group(run_id: str) -> str:
    return f"run.{run_id}"


def _when_committed(hint: Bell | Note) -> None:
    transaction.on_commit(partial(_carrier.put, hint), robust=True)


class _Carrier:
    """The thread and its queue. Started with the first hint, so that importing costs nothing."""

    def __init__(self) -> None:
        self.answer: Callable[[Bell], bool] | None = None
        self._queue: queue.Queue[Bell | Note] = queue.Queue(maxsize=10_000)
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._due: dict[str, int] = {}  # run -> the number to tell once its pause is over
        self._told_at: dict[str, float] = {}
        self._sending: set[Future[None]] = set()
        self._broker: Connection | None = None
        self._deaf_until = 0.0
        self._hosts: tuple[float, list[str]] = (0.0, [])

    def put(self, hint: Bell | Note) -> None:
        if isinstance(hint, Bell) and self.answer is not None and self.answer(hint):
            return
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(hint)
        if self._thread is None:
            with self._lock:
                if self._thread is None:
                    self._thread = threading.Thread(target=self._carry, name="bells", daemon=True)
                    self._thread.start()

    def _carry(self) -> None:
        while True:
            try:
                hint = self._queue.get(timeout=AT_MOST_EVERY / 2 if self._due else None)
            except queue.Empty:
                self._tell_the_due()
                continue
            try:
                if isinstance(hint, Bell):
                    self._ring(hint)
                else:
                    self._due[hint.run] = max(hint.number, self._due.get(hint.run, 0))
                self._tell_the_due()
            except Exception as error:  # noqa: BLE001 - a hint is never worth a thread
                log.warning("hint lost: %s (%s)", hint, error)
                self._broker = None
                self._deaf_until = time.monotonic() + 1  # or a dead Redis would cost a timeout per hint

    def _tell_the_due(self) -> None:
        now = time.monotonic()
        ready = [run for run in self._due if now - self._told_at.get(run, 0.0) >= AT_MOST_EVERY]
        for run in ready[: AT_ONCE - len(self._sending)]:
            self._told_at[run] = now
            sending = loop.submit(_send(run, self._due.pop(run)))
            self._sending.add(sending)
            sending.add_done_callback(self._sending.discard)
        if len(self._told_at) > 1000:
            self._told_at = {run: at for run, at in self._told_at.items() if now - at < AT_MOST_EVERY}

    def _ring(self, bell: Bell) -> None:
        if time.monotonic() < self._deaf_until:
            return
        for host in [bell.host] if bell.host else self._hosts_with_room():
            self._publish(bell, f"host.{host}")

    def _publish(self, bell: Bell, queue_name: str) -> None:
        from celery import current_app  # noqa: PLC0415 - the app is configured after this module is imported

        if self._broker is None:
            self._broker = Connection(
                settings.CELERY_BROKER_URL,
                transport_options={
                    **settings.CELERY_BROKER_TRANSPORT_OPTIONS,
                    "socket_timeout": 1,
                    "socket_connect_timeout": 1,
                    "max_retries": 0,  # kombu's own, before ours are asked
                },
            )
        with current_app.amqp.Producer(self._broker, auto_declare=False) as producer:
            current_app.send_task(
                bell.task,
                args=(bell.subject,),
                queue=queue_name,
                producer=producer,
                expires=EXPIRES,
                retry=False,
                ignore_result=True,
            )

    def _hosts_with_room(self) -> Iterable[str]:
        """The live host with most room, or none. Asked once a second: it is a hint about a hint."""
        asked_at, hosts = self._hosts
        if time.monotonic() - asked_at > 1:
            hosts = live_hosts()
            self._hosts = (time.monotonic(), hosts)
        return hosts[:1]


def live_hosts() -> list[str]:
    """Hosts heard of lately, the one with most room first."""
    try:
        seated = Run.objects.filter(has_slot=True).order_by().values_list("host_id")
        in_use = dict(seated.annotate(Count("pk")))
        alive = list(Host.objects.filter(last_seen_at__gt=clock.now() - HEARD_OF))
    finally:
        connection.close()
    return [host.pk for host in sorted(alive, key=lambda host: in_use.get(host.pk, 0) - host.capacity)]


async def _send(run_id: str, number: int) -> None:
    layer = get_channel_layer()
    assert layer is not None, "settings name a channel layer"
    message = {"type": "run.reached", "run": run_id, "number": number}
    with contextlib.suppress(Exception):
        await layer.group_send(run_group(run_id), message)


_carrier = _Carrier()
