"""The Celery application, and how a worker process begins and ends."""

from __future__ import annotations

import logging
import os
from typing import Any

from celery import Celery, bootsteps, signals
from celery.apps.beat import Beat

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentfleet.settings")
# Celery would check the whole project first, with every page of the admin: a quarter of a worker's start.
os.environ.setdefault("CELERY_SKIP_CHECKS", "1")

app = Celery("agentfleet")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks(["runs"])
app.set_default()

log = logging.getLogger(__name__)


class NoAcknowledgements(bootsteps.StartStopStep):
    """The worker's queues keep nothing of a doorbell that was heard, so there is nothing to acknowledge.

    Celery does it all the same, and kombu makes a new Redis client for each: a tenth of the worker's time.
    """

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, parent: Any) -> None:
        """With every new connection."""
        parent.task_consumer.channel.basic_ack = lambda *_, **__: None


app.steps["consumer"].add(NoAcknowledgements)


@signals.setup_logging.connect
def keep_our_logging(**_: Any) -> None:
    """Celery configures logging unless somebody answers this; Django's settings have done it."""


@signals.worker_ready.connect
def take_work(sender: Any, **_: Any) -> None:
    """The broker is connected and the pool stands: say so, and let the sweep use the pool too."""
    from runs import worker  # noqa: PLC0415 - needs Django to be set up

    current = worker.current()
    current.work_with(sender.pool.executor)
    log.info("worker %s on host %s is ready", current.owner, current.host_id)


@signals.worker_shutting_down.connect
def let_go(**_: Any) -> None:
    from runs import worker  # noqa: PLC0415

    worker.current().stop()


def work() -> None:
    """Be a worker process until told to stop."""
    import django  # noqa: PLC0415

    django.setup()
    from django.conf import settings  # noqa: PLC0415

    from runs import ticks, worker  # noqa: PLC0415

    current = worker.current()
    queues = [f"host.{current.host_id}", ticks.FLEET_QUEUE]
    for name in queues:
        app.amqp.queues[name].no_ack = True  # a doorbell is done when it has been heard: nothing to keep or restore
    app.Worker(
        pool_cls="threads",
        concurrency=settings.WORKER_THREADS,
        queues=queues,
        hostname=f"{current.owner}@{current.host_id}",
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
        loglevel=settings.LOG_LEVEL,
        quiet=True,
    ).start()
    current.leave()


class Clock(Beat):
    """Rings by a task's name: what the tasks themselves load is a third of its memory, and of no use to it."""

    def init_loader(self) -> None:
        app.finalize()


def keep_time() -> None:
    """Be the beat process: its messages are doorbells, so a second one does no harm."""
    from django.conf import settings  # noqa: PLC0415

    Clock(app=app, loglevel=settings.LOG_LEVEL, quiet=True, pidfile=None, schedule=None).run()
