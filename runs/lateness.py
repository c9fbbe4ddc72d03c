"""Whether schedules are kept: when each agent's next tick must have been fired, and which were not."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from django.conf import settings
from django.db.models import Exists, OuterRef, QuerySet

from agents import schedule
from agents.models import Agent, AgentEvent, Schedule
from runs.models import Run


def grace() -> timedelta:
    """How long after its time a tick may be fired."""
    return timedelta(seconds=settings.SCHEDULE_GRACE)


def expected_by(agent: Agent) -> datetime | None:
    """When the agent's next tick must have been fired; past, if it is late. None: none is to be expected."""
    if agent.refusal:
        return None
    moments = [due for row in agent.schedules.all() if (due := due_by(row)) is not None]
    return min(moments, default=None)


def due_by(row: Schedule) -> datetime | None:
    try:
        due = next_tick(row, counted_from(row))
    except schedule.BadSchedule:
        return None
    return row.starts_at(due) + grace() if due else None


def able() -> QuerySet[Agent]:
    """Agents that may start something."""
    return Agent.objects.filter(active=True, paused_at=None, scale__gt=0, workspace__paused_at=None)


def late_schedules(now: datetime) -> dict[str, str]:
    """Agents whose tick was due and came to nothing, each with what to say.

    One statement, because a tick moves its schedule's time and makes its run in one transaction.
    """
    of_tick = Run.objects.filter(agent=OuterRef("agent"), scheduled_for=OuterRef("fired_at"))
    said_of_tick = AgentEvent.objects.filter(agent=OuterRef("agent"), tick=OuterRef("fired_at"))
    rows = Schedule.objects.filter(agent__in=able()).select_related("agent").order_by("-index")
    rows = rows.annotate(has_run=Exists(of_tick), is_explained=Exists(said_of_tick))
    return {str(row.agent_id): message for row in rows if (message := lateness(row, now))}


def lateness(row: Schedule, now: datetime) -> str:
    """What is wrong with the schedule; empty if nothing is. It has `has_run` and `is_explained`."""
    name = row.agent.name
    try:
        due = next_tick(row, counted_from(row))
        fired = last_fired(row)
    except schedule.BadSchedule as error:
        return f"agent {name} is never due: {error}"
    if due is not None and row.starts_at(due) + grace() <= now:
        missed = f"agent {name} was due at {in_zone(row.starts_at(due), row)} and nobody has fired it"
        return f"{missed}: see whether a worker lives (the front page's Hosts) and what its log says"
    explained = row.has_run or row.is_explained  # type: ignore[attr-defined]
    if fired is not None and not explained:
        empty = f"agent {name} was fired for {in_zone(fired, row)}, and there is neither a run nor a reason"
        return f"{empty}: see its page, and the workers' logs of that time"
    return ""


def counted_from(row: Schedule) -> datetime:
    """Ticks up to here are done with."""
    return max(row.since, row.fired_at)


def last_fired(row: Schedule) -> datetime | None:
    """The last tick that was fired. None: none since the schedule is as it is. Raises BadSchedule."""
    fired = row.fired_at
    if fired <= row.since:
        return None
    # What counts from some moment on has that stored there too, and it is no tick.
    return fired if next_tick(row, fired - timedelta(seconds=1)) == fired else None


def next_tick(row: Schedule, after: datetime) -> datetime | None:
    """Raises BadSchedule."""
    return _next_tick(row.cron, row.timezone, after, row.anchor)


@lru_cache(maxsize=10_000)  # asked every five seconds, and the answer changes with each tick
def _next_tick(expression: str, timezone: str, after: datetime, anchor: datetime) -> datetime | None:
    return next(schedule.ticks(expression, timezone, after=after, anchor=anchor), None)


def in_zone(moment: datetime, row: Schedule) -> str:
    """2026-11-20 09:00:00 Europe/Berlin"""
    return f"{moment.astimezone(ZoneInfo(row.timezone)):%Y-%m-%d %H:%M:%S} {row.timezone}"
