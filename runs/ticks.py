"""Beat's rows, as mirrors of the agents' schedules: what the admin shows, and one more doorbell at the time.

The agent's own cron and zone decide what is due (`queue.fire`); a wrong, lost or doubled tick changes nothing.
"""

from __future__ import annotations

import json

from celery.schedules import ParseException, crontab
from django_celery_beat.models import CrontabSchedule, PeriodicTask

from agents.models import Agent
from agents.schedule import WORDS

FLEET_QUEUE = "fleet"  # bells that any host may answer


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
