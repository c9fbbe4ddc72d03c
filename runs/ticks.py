"""Ticks: what an agent's own cron and zone say is due, and beat's rows as mirrors of that.

Beat's rows are what the admin shows, and one more doorbell at the time: a wrong, lost or doubled one changes nothing.
"""

from __future__ import annotations

import json
from datetime import datetime

from celery.schedules import ParseException, crontab
from django.db import transaction
from django_celery_beat.models import CrontabSchedule, PeriodicTask

from agents import journal, schedule
from agents.models import Agent
from agents.schedule import WORDS
from runs import events, lifecycle, line
from runs.lifecycle import Cause
from runs.models import Run, Status, TriggerKind

FLEET_QUEUE = "fleet"  # bells that any host may answer


def fire(agent: Agent, now: datetime) -> Run | None:
    """Start the agent's scheduled run if a tick is due; the latest, if several were missed.

    Beat's bell and every sweep ask this; the condition on `schedule_fired_at` and the unique
    (agent, scheduled time) let one of them through. What does not become a run is noted with its reason.
    """
    since = agent.schedule_fired_at
    if since is None:
        Agent.objects.filter(pk=agent.pk, schedule_fired_at=None).update(schedule_fired_at=now, schedule_since=now)
        return None
    tick = schedule.latest_due(agent.schedule, agent.timezone, since=since, now=now)
    if tick is None:
        return None
    with transaction.atomic():
        fired: dict[str, datetime] = {"schedule_fired_at": tick}
        if agent.refusal:  # once it takes work again, nobody is to ask what became of this one
            fired["schedule_since"] = tick
        mine = Agent.objects.filter(pk=agent.pk, schedule_fired_at=since).update(**fired)
        if not mine or agent.refusal or has_run(agent, tick):
            return None
        note_missed(agent, since, tick)
        if line.slots_in_use(agent) + line.length(agent) < agent.scale:
            cause = Cause(TriggerKind.SCHEDULE, {"scheduledFor": events.isoformat(tick)})
            return lifecycle.create(agent, cause, scheduled_for=tick)
        return finds_no_slot(agent, tick)


def finds_no_slot(agent: Agent, tick: datetime) -> Run | None:
    """Skipped with a note, or, where the agent says so, in line: one tick at a time, the latest."""
    if agent.spec.overlap == "skip":
        journal.note(agent, "tick.skipped", {"reason": f"scale {agent.scale} in use"}, tick=tick)
        return None
    cause = Cause(TriggerKind.SCHEDULE, {"scheduledFor": events.isoformat(tick)})
    in_line = Run.objects.filter(agent=agent, status=Status.PENDING, trigger=TriggerKind.SCHEDULE).order_by("pk")
    for run_id, earlier in in_line.values_list("pk", "scheduled_for"):
        if lifecycle.postpone(run_id, tick, cause):
            journal.note(agent, "tick.skipped", {"reason": "a later tick took its place in line"}, tick=earlier)
            return None
    return lifecycle.create(agent, cause, scheduled_for=tick)


def note_missed(agent: Agent, since: datetime, tick: datetime) -> None:
    """Ticks that passed while nobody looked: the latest stands for all of them."""
    first = next(schedule.ticks(agent.schedule, agent.timezone, after=since))
    if first < tick:
        journal.note(agent, "ticks.missed", {"first": events.isoformat(first), "before": events.isoformat(tick)})


def has_run(agent: Agent, tick: datetime) -> bool:
    """It was fired before, and the clock or the database is back at an earlier time."""
    return Run.objects.filter(agent=agent, scheduled_for=tick).exists()


def mirror(agent: Agent) -> None:
    """Make beat's row for this agent say what the agent says; none where beat's cron cannot say it."""
    name = f"{agent.workspace.name}/{agent.name}"
    fields = five_fields(agent.schedule)
    if fields is None or not agent.active:
        PeriodicTask.objects.filter(name=name).delete()
        return
    minute, hour, day_of_month, month_of_year, day_of_week = fields
    fitting = {
        "minute": minute,
        "hour": hour,
        "day_of_month": day_of_month,
        "month_of_year": month_of_year,
        "day_of_week": day_of_week,
        "timezone": agent.timezone,
    }
    same = CrontabSchedule.objects.filter(**fitting)  # nothing keeps an operator from making a second
    schedule = same.order_by("pk").first() or CrontabSchedule.objects.create(**fitting)
    PeriodicTask.objects.update_or_create(
        name=name,
        defaults={
            "task": "runs.tasks.tick",
            "args": json.dumps([str(agent.pk)]),
            "crontab": schedule,
            "queue": FLEET_QUEUE,
            "expire_seconds": 30,
            "enabled": not agent.paused,
            "description": "Mirrors the agent's schedule: change it there.",
        },
    )


def five_fields(expression: str) -> list[str] | None:
    """The cron fields as beat can read them; None for what only our own reading knows (seconds, L, #)."""
    fields = WORDS.get(expression.strip().lower(), expression.strip().lower()).split()
    if len(fields) != 5 or "#" in expression:  # beat's cron takes MON#2 for every Monday
        return None
    minute, hour, day_of_month, month_of_year, day_of_week = fields
    try:
        crontab(minute, hour, day_of_week, day_of_month, month_of_year)
    except (ParseException, ValueError):
        return None
    return fields
