"""Whether schedules are kept: when each agent's next tick must have been fired, and which were not."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db.models import Exists, OuterRef, QuerySet

from agents import schedule
from agents.models import Agent, AgentEvent
from runs.models import Run


def grace() -> timedelta:
    """How long after its time a tick may be fired."""
    return timedelta(seconds=settings.SCHEDULE_GRACE)


def expected_by(agent: Agent) -> datetime | None:
    """When the agent's next tick must have been fired; past, if it is late. None: none is to be expected."""
    if not agent.schedule or agent.refusal:
        return None
    try:
        due = next_tick(agent.schedule, agent.timezone, counted_from(agent))
    except schedule.BadSchedule:
        return None
    return due + grace() if due else None


def able() -> QuerySet[Agent]:
    """Agents that may start something."""
    return Agent.objects.filter(active=True, paused_at=None, scale__gt=0)


def late_schedules(now: datetime) -> dict[str, str]:
    """Agents whose tick was due and came to nothing, each with what to say.

    One statement, because a tick moves its agent's time and makes its run in one transaction.
    """
    of_tick = Run.objects.filter(agent=OuterRef("pk"), scheduled_for=OuterRef("schedule_fired_at"))
    said_of_tick = AgentEvent.objects.filter(agent=OuterRef("pk"), tick=OuterRef("schedule_fired_at"))
    agents = able().exclude(schedule="").annotate(has_run=Exists(of_tick), is_explained=Exists(said_of_tick))
    said = {str(agent.pk): lateness(agent, now) for agent in agents}
    return {subject: message for subject, message in said.items() if message}


def lateness(agent: Agent, now: datetime) -> str:
    """What is wrong with the agent's schedule; empty if nothing is. The agent has `has_run` and `is_explained`."""
    try:
        due = next_tick(agent.schedule, agent.timezone, counted_from(agent))
        fired = last_fired(agent)
    except schedule.BadSchedule as error:
        return f"agent {agent.name} is never due: {error}"
    if due is not None and due + grace() <= now:
        missed = f"agent {agent.name} was due at {in_zone(due, agent)} and nobody has fired it"
        return f"{missed}: see whether a worker lives (the front page's Hosts) and what its log says"
    explained = agent.has_run or agent.is_explained  # type: ignore[attr-defined]
    if fired is not None and not explained:
        empty = f"agent {agent.name} was fired for {in_zone(fired, agent)}, and there is neither a run nor a reason"
        return f"{empty}: see its page, and the workers' logs of that time"
    return ""


def counted_from(agent: Agent) -> datetime:
    """Ticks up to here are done with."""
    known = [moment for moment in (agent.schedule_since, agent.schedule_fired_at) if moment is not None]
    return max(known, default=agent.created_at)


def last_fired(agent: Agent) -> datetime | None:
    """The agent's last tick that was fired. None: none since the schedule is as it is. Raises BadSchedule."""
    fired = agent.schedule_fired_at
    if fired is None or (agent.schedule_since is not None and fired <= agent.schedule_since):
        return None
    # The first look at a schedule is stored there too, and no tick.
    return fired if next_tick(agent.schedule, agent.timezone, fired - timedelta(seconds=1)) == fired else None


@lru_cache(maxsize=10_000)  # asked every five seconds, and the answer changes with each tick
def next_tick(expression: str, timezone: str, after: datetime) -> datetime | None:
    """Raises BadSchedule."""
    return next(schedule.ticks(expression, timezone, after=after), None)


def in_zone(tick: datetime, agent: Agent) -> str:
    """2026-11-20 09:00:00 Europe/Berlin"""
    return f"{tick.astimezone(ZoneInfo(agent.timezone)):%Y-%m-%d %H:%M:%S} {agent.timezone}"
