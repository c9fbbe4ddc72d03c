"""What a message says: "look now" at one row, or "do you hear me?". Losing, repeating or reordering harms nothing."""

from __future__ import annotations

from datetime import datetime

from celery import shared_task

from agents import clock
from agents.models import Schedule
from runs import agent_calls, canaries, ticks, worker


@shared_task(name="runs.tasks.look")
def look(run_id: str) -> None:
    """A run: its next step, or a wish somebody left."""
    worker.current().look(run_id)


@shared_task(name="runs.tasks.look_for_work")
def look_for_work(agent_id: str) -> None:
    """An agent's line: is there a slot for its first?"""
    worker.current().look_for_work(int(agent_id))


@shared_task(name="runs.tasks.look_around")
def look_around(run_id: str) -> None:
    """A run and those it has to do with: who waits for whom, and who ends with whom."""
    agent_calls.look_around(run_id)


@shared_task(name="runs.tasks.send")
def send(_nothing: str) -> None:
    """What is to be sent to others."""
    worker.current().sender.wake()


@shared_task(name="runs.tasks.tick")
def tick(agent_id: str) -> None:
    """An agent's schedules: what is due by the agent's own cron, whatever beat thinks."""
    schedules = Schedule.objects.filter(agent=int(agent_id), agent__active=True)
    for schedule in schedules.select_related("agent__version", "agent__workspace"):
        ticks.fire(schedule, clock.now())


@shared_task(name=canaries.TASK)
def hear_canary(queue_name: str, number: int, sent_at: str) -> None:
    """A canary came through; its own host's worker says how the engine is, too."""
    canaries.hear(queue_name, number, datetime.fromisoformat(sent_at))
    current = worker.current()
    if queue_name == f"host.{current.host_id}":
        canaries.look_at_engine(current.engine, current.host_id)
