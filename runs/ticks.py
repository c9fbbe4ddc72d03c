"""Ticks: what an agent's own schedules say is due, and beat's rows as mirrors of that.

Beat's rows are what the admin shows, and one more doorbell at the time: a wrong, lost or doubled one changes nothing.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import islice, takewhile
from typing import Any

from celery.schedules import ParseException, crontab
from django.db import transaction
from django.db.models import Q
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

from agents import clock, journal
from agents.models import Agent, Missed, Schedule
from agents.schedule import WORDS, BadSchedule, every
from runs import alerts, events, intake, lifecycle, line
from runs.lateness import grace
from runs.lifecycle import Cause
from runs.models import Run, Status, TriggerKind

FLEET_QUEUE = "fleet"  # bells that any host may answer
TASK = "runs.tasks.tick"
AT_ONCE = 100  # missed ticks that one look makes up for
AHEAD = timedelta(minutes=10)  # fired so far in the future: the clock was set back since


# --- what is due --------------------------------------------------------------------------------------------------


def fire(schedule: Schedule, now: datetime) -> list[Run]:
    """Start what is due of an agent's schedule; of missed ticks, what it says of them.

    Beat's bell and every sweep ask this; the condition on `fired_at` and the unique (agent, scheduled time)
    let one of them through. What does not become a run is noted with its reason.
    """
    if schedule.fired_at > now + AHEAD:
        return count_anew(schedule, now)
    first = next(schedule.ticks(after=schedule.fired_at), None)
    if first is None or schedule.starts_at(first) > now:
        return []
    if schedule.agent.refusal:  # once it takes work again, nobody is to ask what became of these
        last = latest_begun(schedule, now)
        done_with(schedule, last, since=last)
        return []
    return start_each(schedule, first, chosen(schedule, now), now)


def count_anew(schedule: Schedule, now: datetime) -> list[Run]:
    """The clock was set back: ticks that come a second time find the runs of the first."""
    if done_with(schedule, now, since=now, anchor=min(schedule.anchor, now)):
        journal.note(schedule.agent, "clock.set_back", {"fired": events.isoformat(schedule.fired_at)})
    return []


def chosen(schedule: Schedule, now: datetime) -> list[datetime]:
    """The ticks that are to be runs, oldest first."""
    oldest = oldest_made_up_for(schedule, now)
    if schedule.missed == Missed.ALL:
        nearly = max(schedule.fired_at, oldest - timedelta(seconds=schedule.jitter_seconds))
        young = (tick for tick in begun(schedule, nearly, now) if schedule.starts_at(tick) >= oldest)
        return list(islice(young, AT_ONCE))
    latest = latest_begun(schedule, now)
    return [latest] if schedule.starts_at(latest) >= oldest else []


def oldest_made_up_for(schedule: Schedule, now: datetime) -> datetime:
    """The start of the window: a tick that was to begin before is skipped."""
    if schedule.missed == Missed.SKIP:
        return now - grace()
    if schedule.missed_seconds == 0:
        return schedule.fired_at
    return now - max(grace(), timedelta(seconds=schedule.missed_seconds))


def begun(schedule: Schedule, after: datetime, now: datetime) -> Iterator[datetime]:
    """Ticks after `after` that are to begin by `now`. One that jitter holds back holds back those behind it."""
    return takewhile(lambda tick: schedule.starts_at(tick) <= now, schedule.ticks(after=after))


def latest_begun(schedule: Schedule, now: datetime) -> datetime:
    """The last tick that is to begin by `now`; there is one. However many passed, few are walked over."""
    surely = now - timedelta(seconds=schedule.jitter_seconds)
    known = schedule.latest(since=schedule.fired_at, now=surely) or schedule.fired_at
    following = deque(begun(schedule, known, now), maxlen=1)
    return following[0] if following else known


def done_with(schedule: Schedule, tick: datetime, **more: datetime) -> bool:
    """Ticks up to this one are nobody's concern any more. False: somebody else has seen to it."""
    untouched = Schedule.objects.filter(pk=schedule.pk, fired_at=schedule.fired_at)
    return bool(untouched.update(fired_at=tick, **more))


# --- what becomes of it -------------------------------------------------------------------------------------------


def start_each(schedule: Schedule, first: datetime, due: list[datetime], now: datetime) -> list[Run]:
    last = due[-1] if due else latest_begun(schedule, now)
    late = len(due) > 1 or schedule.starts_at(last) < now - grace()
    with transaction.atomic():
        intake.one_by_one(schedule.agent)  # two schedules may come at one time
        if not done_with(schedule, last):
            return []
        tell_of_missed(schedule, first, due, last)
        runs = [start(schedule, tick, made_up=late) for tick in due]
    return [run for run in runs if run is not None]


def tell_of_missed(schedule: Schedule, first: datetime, due: list[datetime], last: datetime) -> None:
    """Ticks from `first` on that become no run of their own: noted, and an alert unless another stands for them."""
    agent, missed = schedule.agent, {"schedule": schedule.cron, "first": events.isoformat(first)}
    if due and first == due[0]:
        alerts.end(alerts.SCHEDULE_MISSED, str(agent.pk))
        return
    if due:
        journal.note(agent, "ticks.missed", missed | {"before": events.isoformat(due[0])})
    else:
        journal.note(agent, "ticks.missed", missed | {"last": events.isoformat(last)}, tick=last)
    if schedule.missed != Missed.LATEST or not due:
        alerts.begin(alerts.SCHEDULE_MISSED, str(agent.pk), missed_in_words(schedule, first, last))


def missed_in_words(schedule: Schedule, first: datetime, last: datetime) -> str:
    policy = "it skips them" if schedule.missed == Missed.SKIP else "they are too old to be made up for"
    until = f" to {last:%Y-%m-%d %H:%M:%S}" if last > first else ""
    ticks = f"ticks of {schedule} of agent {schedule.agent.name} from {first:%Y-%m-%d %H:%M:%S}{until} UTC"
    return f"{ticks} were not fired in time, and {policy}: see what stopped the workers then"


def start(schedule: Schedule, tick: datetime, *, made_up: bool) -> Run | None:
    """The tick's run; None if it has one, or gets none."""
    agent = schedule.agent
    if has_run(agent, tick):
        return None
    cause = Cause(TriggerKind.SCHEDULE, {"scheduledFor": events.isoformat(tick), "schedule": schedule.cron})
    if line.slots_in_use(agent) + line.length(agent) < agent.scale:
        return lifecycle.create(agent, cause, scheduled_for=tick)
    if schedule.missed == Missed.ALL and (made_up or agent.spec.overlap == "queue"):
        return stand_in_line(agent, tick, cause)
    return finds_no_slot(schedule, tick, cause)


def stand_in_line(agent: Agent, tick: datetime, cause: Cause) -> Run | None:
    """As long as the line has room; what comes then can be replayed."""
    try:
        intake.check_room(agent)
    except intake.QueueFull as full:
        letter = intake.keep(agent, cause, "", code="QUEUE_FULL", reason=str(full))
        journal.note(agent, "tick.skipped", {"reason": f"{full}: kept as {letter.pk}"}, tick=tick)
        return None
    return lifecycle.create(agent, cause, scheduled_for=tick)


def finds_no_slot(schedule: Schedule, tick: datetime, cause: Cause) -> Run | None:
    """Skipped with a note, or, where the agent says so, in line: of each schedule one tick at a time, the latest."""
    agent = schedule.agent
    if agent.spec.overlap == "skip":
        journal.note(agent, "tick.skipped", {"reason": f"scale {agent.scale} in use"}, tick=tick)
        return None
    in_line = Run.objects.filter(agent=agent, status=Status.PENDING, trigger=TriggerKind.SCHEDULE).order_by("pk")
    ours = in_line.filter(trigger_context__schedule=schedule.cron)
    for run_id, earlier in ours.values_list("pk", "scheduled_for"):
        if lifecycle.postpone(run_id, tick, cause):
            journal.note(agent, "tick.skipped", {"reason": "a later tick took its place in line"}, tick=earlier)
            return None
    return lifecycle.create(agent, cause, scheduled_for=tick)


def has_run(agent: Agent, tick: datetime) -> bool:
    """Another schedule has it, or it was fired before and the clock or the database is back at an earlier time."""
    return Run.objects.filter(agent=agent, scheduled_for=tick).exists()


# --- what counts --------------------------------------------------------------------------------------------------


def count_from_now(which: Q) -> None:
    """What passed of these schedules is not made up for."""
    now = clock.now()
    Schedule.objects.filter(which).update(fired_at=now, since=now)


# --- beat's rows --------------------------------------------------------------------------------------------------


def mirror(agent: Agent) -> None:
    """Make beat's rows for this agent say what the agent says; none where beat cannot say it."""
    name = f"{agent.workspace.name}/{agent.name}"
    wanted: dict[str, dict[str, Any]] = {}
    for schedule in agent.schedules.all() if agent.active else ():
        if (said := as_beat_says(schedule)) is not None:
            wanted[f"{name}/{schedule.index + 1}" if schedule.index else name] = said
    ours = Q(name=name) | Q(name__startswith=f"{name}/")
    PeriodicTask.objects.filter(ours, task=TASK).exclude(name__in=wanted).delete()
    for name, said in wanted.items():
        PeriodicTask.objects.update_or_create(name=name, defaults={**as_bell_of(agent), **said})


def as_bell_of(agent: Agent) -> dict[str, Any]:
    return {
        "task": TASK,
        "args": json.dumps([str(agent.pk)]),
        "queue": FLEET_QUEUE,
        "expire_seconds": 30,
        "enabled": not agent.paused and agent.workspace.paused_at is None,
        "description": "Mirrors the agent's schedule: change it there.",
    }


def as_beat_says(schedule: Schedule) -> dict[str, Any] | None:
    """Which of beat's own rows it is; None for what only our own reading knows (seconds, L, #)."""
    try:
        interval = every(schedule.cron)
    except BadSchedule:
        return None
    if interval is not None:
        row = one_of(IntervalSchedule, every=int(interval.total_seconds()), period=IntervalSchedule.SECONDS)
        return {"interval": row, "crontab": None}
    fields = five_fields(schedule.cron)
    if fields is None:
        return None
    names = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
    row = one_of(CrontabSchedule, **dict(zip(names, fields, strict=True)), timezone=schedule.timezone)
    return {"crontab": row, "interval": None}


def one_of(kind: type[Any], **fitting: Any) -> Any:
    """Nothing keeps an operator from making a second row that says the same."""
    return kind.objects.filter(**fitting).order_by("pk").first() or kind.objects.create(**fitting)


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
