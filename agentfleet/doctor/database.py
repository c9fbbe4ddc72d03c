"""The database, and what it says of workers, schedules and the keys that agents need."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from datetime import timedelta
from typing import TYPE_CHECKING

from agentfleet import bootstrap
from agentfleet.doctor.findings import PATIENCE, SHOWN, STARTING, Place, Wrong

if TYPE_CHECKING:
    from agents.models import Schedule


def look_at_database(place: Place) -> str:
    if os.environ.get("DATABASE_URL"):
        return ask_server()
    file = place.home / "agentfleet.sqlite3"
    if not file.exists():
        return f"there is none yet: `agentfleet up` makes {file}"
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=PATIENCE)) as opened:
            count = opened.execute("SELECT count(*) FROM runs_run").fetchone()[0]
    except sqlite3.Error as error:
        raise Wrong(f"{file} does not open ({error}): run `agentfleet up`, or put a backup in its place") from error
    return f"{file}, {count} runs"


def ask_server() -> str:
    bootstrap.set_up_django()
    from django.db import DatabaseError, connection  # noqa: PLC0415 - here and below: each check loads what it needs

    try:
        connection.ensure_connection()
    except DatabaseError as error:
        raise Wrong(f"DATABASE_URL does not answer ({error}): start the server, or mend the address") from error
    finally:
        connection.close()
    return f"{connection.vendor} at DATABASE_URL answers"


def look_at_worker(place: Place) -> str:
    bootstrap.set_up_django()
    silent = silence()
    while place.worker_is_new() and (silent is None or silent > STARTING):
        time.sleep(0.2)
        silent = silence()
    if silent is None:
        raise Wrong(f"no worker was ever heard of: see {place.log('worker')}")
    if silent > STARTING:
        raise Wrong(f"the last word of a worker is {silent.total_seconds():.0f} s old: see {place.log('worker')}")
    return f"heard of {silent.total_seconds():.0f} s ago"


def silence() -> timedelta | None:
    """Since the last word of any worker; None: there never was one."""
    from agents import clock  # noqa: PLC0415
    from runs.models import Host  # noqa: PLC0415

    seen = Host.objects.order_by("-last_seen_at").values_list("last_seen_at", flat=True).first()
    return None if seen is None else max(clock.now() - seen, timedelta())


def look_at_schedules(place: Place) -> str:
    bootstrap.set_up_django()
    from agents import clock, timetable  # noqa: PLC0415
    from agents.models import Schedule  # noqa: PLC0415
    from runs import lateness  # noqa: PLC0415

    schedules = list(Schedule.objects.filter(agent__in=lateness.able()).select_related("agent"))
    late = sorted({row.agent.name for row in schedules if is_late(row)})
    if late and not place.worker_is_new():
        raise Wrong(f"due and not started: {', '.join(late[:SHOWN])}: see {place.log('worker')}")
    following = timetable.upcoming(schedules, after=clock.now(), count=1)
    if not following:
        return "no agent has one with a time to come"
    [tick] = following
    agents = len({row.agent_id for row in schedules})
    return f"{agents} agents have one; next is {tick.schedule.agent.name} at {tick.at:%Y-%m-%d %H:%M:%S} UTC"


def is_late(row: Schedule) -> bool:
    from agents import clock  # noqa: PLC0415
    from agents.schedule import BadSchedule  # noqa: PLC0415

    try:
        due = next(row.ticks(after=row.fired_at), None)
    except BadSchedule:  # the worker says so, each time it looks
        return True
    return due is not None and row.starts_at(due) < clock.now() - STARTING


def look_at_model_keys(place: Place) -> str:
    """By name; of a value it is only asked whether there is one."""
    if not os.environ.get("DATABASE_URL") and not (place.home / "agentfleet.sqlite3").exists():
        return "no agent needs one yet"
    bootstrap.set_up_django()
    from agents.models import Agent  # noqa: PLC0415

    rows = Agent.objects.filter(active=True, scale__gt=0, kind="model", version__isnull=False)
    wanted = {row.name: [model.provider for model in row.spec.models] for row in rows.select_related("version")}
    there = {provider: has_key(provider) for provider in sorted({name for names in wanted.values() for name in names})}
    idle = [agent for agent, providers in wanted.items() if providers and not any(map(there.get, providers))]
    if idle:
        missing = sorted({provider for agent in idle for provider in wanted[agent]})
        mend = f"add one with `agentfleet creds add {missing[0]}_key`, or put it into its variable before `up`"
        raise Wrong(f"no key for {', '.join(missing)}, and {', '.join(idle[:SHOWN])} cannot run without: {mend}")
    said = [f"{provider}: {'there' if has else 'none, others stand in'}" for provider, has in there.items()]
    return ", ".join(said) or "no agent needs one yet"


def has_key(provider: str) -> bool:
    from agents.credentials import CredentialError  # noqa: PLC0415
    from runs.llm import keys, scripted  # noqa: PLC0415

    try:
        return provider == scripted.PROVIDER or keys.access(provider) is not None
    except CredentialError as error:
        raise Wrong(str(error)) from error
