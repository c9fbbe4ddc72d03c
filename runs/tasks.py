"""What a doorbell says: three tasks, each "look now" at one row. Losing, repeating or reordering them harms nothing."""

from __future__ import annotations

from celery import shared_task

from agents import clock
from agents.models import Agent
from runs import queue, worker


@shared_task(name="runs.tasks.look")
def look(run_id: str) -> None:
    """A run: its next step, or a wish somebody left."""
    worker.current().look(run_id)


@shared_task(name="runs.tasks.look_for_work")
def look_for_work(agent_id: str) -> None:
    """An agent's line: is there a slot for its first?"""
    worker.current().look_for_work(int(agent_id))


@shared_task(name="runs.tasks.tick")
def tick(agent_id: str) -> None:
    """An agent's schedule: what is due by the agent's own cron, whatever beat thinks."""
    agent = Agent.objects.filter(pk=agent_id, active=True).exclude(schedule="").first()
    if agent is not None:
        queue.fire(agent, clock.now())
