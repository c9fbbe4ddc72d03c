"""Schedules: what fires when, whoever rings for it, and how beat's rows mirror it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django_celery_beat.models import CrontabSchedule, PeriodicTask
from django_celery_beat.schedulers import DatabaseScheduler
from kombu import Connection

from agentfleet.celery import app
from agents.models import Agent, AgentEvent, Schedule
from agents.redaction import NOTHING_SECRET
from agents.spec import AgentSpec, ProjectSpec
from runs import lifecycle, queue, sweep, tasks, ticks
from runs.events import isoformat
from runs.leases import Lease
from runs.models import Run
from tests.conftest import PATIENCE, DrivenClock, DrivenWorker, other_worker
from tests.making import make_agent, make_workspace, submit
from webhooks import projects

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgresql]

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def noon(driven_clock: DrivenClock) -> None:
    driven_clock.stand_at(NOON)


def reload(agent: Agent) -> Agent:
    return Agent.objects.get(pk=agent.pk)


def scheduled(name: str = "dev", cron: str = "*/10 * * * *", **changes: Any) -> Agent:
    """An agent whose schedule counts from now."""
    return reload(make_agent(name, schedule=cron, **changes))


def its_schedule(agent: Agent) -> Schedule:
    """Its only one."""
    return Schedule.objects.get(agent=agent)


def fired(agent: Agent) -> list[str]:
    """The ticks that started a run, as times of day."""
    moments = Run.objects.filter(agent=agent).order_by("scheduled_for").values_list("scheduled_for", flat=True)
    return [moment.strftime("%H:%M") for moment in moments if moment is not None]


def seat(worker: DrivenWorker, agent: Agent) -> Lease:
    """A run of the agent that is at work."""
    submit(agent)
    lease = lifecycle.claim(agent.pk, owner=worker.owner, host_id=worker.host_id)
    assert lease is not None
    return lease


def empty_the_line(agent: Agent) -> None:
    for run in Run.objects.filter(agent=agent, status="pending"):
        queue.cancel(run)


# --- what fires ---------------------------------------------------------------------------------------------------


def test_a_tick_starts_a_run_that_says_which(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    agent = scheduled()
    driven_clock.forward(9 * 60 + 59)
    sweep.fire_schedules(worker)
    assert fired(agent) == []
    driven_clock.forward(1)
    sweep.fire_schedules(worker)
    run = Run.objects.get()
    assert (run.trigger, run.status) == ("schedule", "pending")
    assert run.scheduled_for == NOON + timedelta(minutes=10)
    assert run.trigger_context == {"scheduledFor": "2026-11-20T12:10:00.000Z", "schedule": "*/10 * * * *"}
    assert its_schedule(agent).fired_at == run.scheduled_for


def test_beat_and_several_sweeps_at_once_fire_each_tick_once(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    agent = scheduled()
    second = other_worker(worker)
    looks: list[Callable[[], None]] = [
        lambda: tasks.tick(str(agent.pk)),
        lambda: tasks.tick(str(agent.pk)),
        lambda: sweep.fire_schedules(worker),
        lambda: sweep.fire_schedules(second),
    ]
    for _ in range(5):
        driven_clock.forward(600)
        at_once(looks)
        empty_the_line(agent)
    assert fired(agent) == ["12:10", "12:20", "12:30", "12:40", "12:50"]


def test_two_beats_fire_a_time_that_two_schedules_name_once(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    agent = reload(make_agent(schedules=[{"cron": "*/10 * * * *"}, {"cron": "*/20 * * * *", "missed": "all"}], scale=9))
    driven_clock.forward(600)
    for _ in range(3):
        driven_clock.forward(600)
        at_once([lambda: tasks.tick(str(agent.pk))] * 2)
    assert fired(agent) == ["12:20", "12:30", "12:40"]


def at_once(acts: list[Callable[[], None]]) -> None:
    gate = threading.Barrier(len(acts))
    failed: list[Exception] = []

    def do(act: Callable[[], None]) -> None:
        try:
            gate.wait(PATIENCE)
            act()
        except Exception as error:  # noqa: BLE001 - looked at by the test's own thread
            failed.append(error)
        finally:
            connection.close()

    threads = [threading.Thread(target=do, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert failed == []


def test_of_missed_ticks_the_latest_is_made_up_for(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    agent = scheduled()
    driven_clock.forward(3 * 24 * 3600 + 25 * 60)
    sweep.fire_schedules(worker)
    sweep.fire_schedules(worker)
    assert Run.objects.get().scheduled_for == NOON + timedelta(days=3, minutes=20)
    assert fired(agent) == ["12:20"]


def test_a_tick_that_finds_no_slot_is_skipped_and_noted(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    agent = scheduled()
    busy = seat(worker, agent)
    for _ in range(3):
        driven_clock.forward(600)
        sweep.fire_schedules(worker)
    assert fired(agent) == []
    noted = AgentEvent.objects.get(agent=agent)
    assert (noted.type, noted.data) == ("tick.skipped", {"reason": "scale 1 in use", "times": 3})
    assert noted.tick == its_schedule(agent).fired_at
    lifecycle.cancel(busy, redactor=NOTHING_SECRET)
    sweep.fire_schedules(worker)
    assert fired(agent) == []  # what was skipped is not made up for
    driven_clock.forward(600)
    sweep.fire_schedules(worker)
    assert fired(agent) == ["12:40"]


def test_where_ticks_queue_the_latest_stands_in_line(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    agent = scheduled(overlap="queue")
    seat(worker, agent)
    for _ in range(3):
        driven_clock.forward(600)
        sweep.fire_schedules(worker)
    assert fired(agent) == ["12:30"]
    run = Run.objects.get(agent=agent, trigger="schedule")
    assert run.scheduled_for is not None
    assert run.trigger_context == {"scheduledFor": isoformat(run.scheduled_for), "schedule": "*/10 * * * *"}
    assert run.last_event == 3  # created, and moved twice
    skipped = AgentEvent.objects.filter(agent=agent, type="tick.skipped")
    assert [note.data["times"] for note in skipped] == [2]


def test_ticks_missed_while_nobody_looked_are_noted(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    agent = scheduled()
    driven_clock.forward(1800)
    sweep.fire_schedules(worker)
    assert fired(agent) == ["12:30"]
    noted = AgentEvent.objects.get(agent=agent)
    assert noted.type == "ticks.missed"
    assert (noted.data["first"][11:16], noted.data["before"][11:16]) == ("12:10", "12:30")


def test_a_tick_whose_run_is_there_already_stops_nobody(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    """As after a restored backup, or a clock that was set back."""
    first, second = scheduled("first"), scheduled("second")
    driven_clock.forward(600)
    sweep.fire_schedules(worker)
    empty_the_line(first)
    empty_the_line(second)
    Schedule.objects.filter(agent=first).update(fired_at=NOON)
    driven_clock.stand_at(NOON + timedelta(minutes=19))
    sweep.fire_schedules(worker)
    driven_clock.stand_at(NOON + timedelta(minutes=20))
    sweep.fire_schedules(worker)
    assert fired(first) == fired(second) == ["12:10", "12:20"]


def test_a_schedule_that_cannot_be_read_stops_no_other(
    worker: DrivenWorker, driven_clock: DrivenClock, caplog: pytest.LogCaptureFixture
) -> None:
    broken, whole = scheduled("broken"), scheduled("whole")
    lost = scheduled("lost")
    Schedule.objects.filter(agent=broken).update(cron="whenever")
    Schedule.objects.filter(agent=lost).update(timezone="Mars/Olympus")
    driven_clock.forward(600)
    sweep.fire_schedules(worker)
    assert [fired(agent) for agent in (broken, lost, whole)] == [[], [], ["12:10"]]
    assert "'whenever' is no cron expression" in caplog.text
    assert "there is no time zone 'Mars/Olympus'" in caplog.text


def test_one_agent_that_fails_otherwise_stops_no_other(
    worker: DrivenWorker,
    driven_clock: DrivenClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    scheduled("broken")
    whole = scheduled("whole")
    fire = ticks.fire

    def fails_for_one(schedule: Schedule, now: datetime) -> list[Run]:
        if schedule.agent.name == "broken":
            raise RuntimeError("cannot be fired")
        return fire(schedule, now)

    monkeypatch.setattr(ticks, "fire", fails_for_one)
    driven_clock.forward(600)
    sweep.fire_schedules(worker)
    assert fired(whole) == ["12:10"]
    assert "cannot be fired" in caplog.text


# --- agents that may not ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("looked", [True, False])
def test_a_paused_agent_fires_nothing_and_does_not_catch_up(
    worker: DrivenWorker, driven_clock: DrivenClock, looked: bool
) -> None:
    agent = scheduled()
    queue.pause(agent)
    for _ in range(3):
        driven_clock.forward(600)
        if looked:
            sweep.fire_schedules(worker)
            tasks.tick(str(agent.pk))
    queue.resume(agent)
    sweep.fire_schedules(worker)
    assert fired(agent) == []
    driven_clock.forward(600)
    sweep.fire_schedules(worker)
    assert fired(agent) == ["12:40"]


def test_an_agent_that_is_switched_off_fires_nothing(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    agent = scheduled(scale=0)
    driven_clock.forward(600)
    sweep.fire_schedules(worker)
    tasks.tick(str(agent.pk))
    Agent.objects.filter(pk=agent.pk).update(scale=1)
    sweep.fire_schedules(worker)
    assert fired(agent) == []
    driven_clock.forward(600)
    sweep.fire_schedules(worker)
    assert fired(agent) == ["12:20"]


def test_an_agent_no_longer_in_its_project_fires_nothing(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    agent = applied("*/10 * * * *")
    applied()
    driven_clock.forward(600)
    sweep.fire_schedules(worker)
    tasks.tick(str(agent.pk))
    applied("*/10 * * * *")
    sweep.fire_schedules(worker)
    assert fired(agent) == []
    driven_clock.forward(600)
    sweep.fire_schedules(worker)
    assert fired(agent) == ["12:20"]


def test_a_changed_schedule_does_not_make_up_for_what_the_old_one_missed(
    worker: DrivenWorker, driven_clock: DrivenClock
) -> None:
    agent = applied("*/10 * * * *")
    driven_clock.forward(15 * 60)
    applied("5 * * * *")
    sweep.fire_schedules(worker)
    assert fired(agent) == []
    driven_clock.forward(50 * 60)
    sweep.fire_schedules(worker)
    assert fired(agent) == ["13:05"]


def test_a_bell_for_an_agent_that_is_gone_or_has_no_schedule_does_nothing(worker: DrivenWorker) -> None:
    tasks.tick("123456")
    tasks.tick(str(make_agent().pk))
    assert not Run.objects.exists()


# --- clocks that change -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("zone", "day", "cron", "expected"),
    [
        ("Asia/Kolkata", "2026-11-20", "30 9 * * *", ["04:00"]),
        ("America/New_York", "2026-11-20", "30 9 * * *", ["14:30"]),
        ("Europe/Berlin", "2026-03-29", "30 2 * * *", ["01:00"]),  # does not exist
        ("Europe/Berlin", "2026-10-25", "30 2 * * *", ["00:30"]),  # comes twice
        ("Europe/Berlin", "2026-10-25", "0 3 * * *", ["02:00"]),
    ],
)
def test_a_time_of_day_fires_once_a_day_where_the_agent_lives(
    worker: DrivenWorker, driven_clock: DrivenClock, zone: str, day: str, cron: str, expected: list[str]
) -> None:
    start = datetime.fromisoformat(f"{day}T00:00:00+00:00") - timedelta(hours=2)
    driven_clock.stand_at(start)
    agent = scheduled(cron=cron, timezone=zone)
    for _ in range(25 * 4):
        driven_clock.forward(15 * 60)
        sweep.fire_schedules(worker)
        empty_the_line(agent)
    assert fired(agent) == expected


# --- beat's rows --------------------------------------------------------------------------------------------------


def applied(*crons: str, **changes: Any) -> Agent:
    """The agent of a project with this schedule, or after one without the agent."""
    agents = tuple(AgentSpec.load({"name": "dev", "schedule": cron, **changes}) for cron in crons)
    projects.apply(make_workspace(), ProjectSpec(name="shop", agents=agents))
    return Agent.objects.get(name="dev")


def beats_rows() -> list[PeriodicTask]:
    return list(PeriodicTask.objects.filter(name="default/dev"))


def beats_row() -> PeriodicTask:
    (row,) = beats_rows()
    return row


def beats_fields() -> str:
    cron = beats_row().crontab
    return f"{cron.minute} {cron.hour} {cron.day_of_month} {cron.month_of_year} {cron.day_of_week} {cron.timezone}"


def test_beats_row_says_what_the_agent_says() -> None:
    agent = applied("30 9 1 * MON-FRI", timezone="Asia/Kolkata")
    row = beats_row()
    assert beats_fields() == "30 9 1 * mon-fri Asia/Kolkata"
    assert (row.task, row.args, row.queue, row.enabled) == ("runs.tasks.tick", f'["{agent.pk}"]', "fleet", True)
    applied("0 */2 * * *")
    assert beats_fields() == "0 */2 * * * UTC"
    assert PeriodicTask.objects.filter(task="runs.tasks.tick").count() == 1


def test_beats_row_rests_while_the_agent_is_paused() -> None:
    agent = applied("0 9 * * *")
    queue.pause(agent)
    assert not beats_row().enabled
    applied("0 10 * * *")
    assert not beats_row().enabled
    queue.resume(agent)
    assert beats_row().enabled


def test_each_schedule_has_a_row_and_those_that_are_gone_have_none() -> None:
    def rows_of(*schedules: dict[str, Any]) -> dict[str, str]:
        spec = AgentSpec.load({"name": "dev", "schedules": schedules})
        projects.apply(make_workspace(), ProjectSpec(name="shop", agents=(spec,)))
        rows = PeriodicTask.objects.filter(task="runs.tasks.tick")
        return {row.name: str(row.interval or row.crontab.hour) for row in rows}

    three = rows_of({"cron": "0 9 * * *"}, {"cron": "@every 15m"}, {"cron": "0 8 * * *", "timezone": "Asia/Tokyo"})
    assert three == {"default/dev": "9", "default/dev/2": "every 900 seconds", "default/dev/3": "8"}
    assert rows_of({"cron": "@every 1h"}) == {"default/dev": "every 3600 seconds"}


@pytest.mark.parametrize(
    "later",
    [(), ("",), ("30 0 9 * * *",), ("0 9 L * *",), ("0 9 * * MON#2",), ("0 9 LW * *",), ("0 9 * * 5L",)],
)
def test_what_beat_cannot_say_has_no_row(later: tuple[str, ...]) -> None:
    applied("0 9 * * *")
    assert len(beats_rows()) == 1
    applied(*later)
    assert beats_rows() == []


@pytest.mark.parametrize(
    ("word", "fields"), [("@daily", "0 0 * * * UTC"), (" @Hourly ", "0 * * * * UTC"), ("@weekly", "0 0 * * 0 UTC")]
)
def test_words_are_written_out_for_beat(word: str, fields: str) -> None:
    ticks.mirror(make_agent(schedule=word))
    assert beats_fields() == fields


def test_agents_share_a_schedules_row_and_twins_made_by_hand_do_no_harm() -> None:
    for name in ("a", "b"):
        ticks.mirror(make_agent(name, schedule="0 9 * * *"))
    one = CrontabSchedule.objects.get(hour="9")
    CrontabSchedule.objects.create(minute="0", hour="9", timezone=one.timezone)
    ticks.mirror(make_agent("c", schedule="0 9 * * *"))
    assert PeriodicTask.objects.filter(task="runs.tasks.tick").count() == 3


def test_beats_own_scheduler_reads_the_row_and_rings_at_the_fleets_queue(
    worker: DrivenWorker, driven_clock: DrivenClock
) -> None:
    agent = applied("*/10 * * * *", timezone="Asia/Kolkata")
    scheduler = DatabaseScheduler(app=app, lazy=True)
    entry = scheduler.all_as_schedule()["default/dev"]
    assert str(entry.schedule.tz) == "Asia/Kolkata"
    assert not entry.is_due().is_due
    entry.last_run_at -= timedelta(minutes=20)
    assert entry.is_due().is_due
    with Connection("memory://") as broker:
        heard = broker.SimpleQueue("fleet")
        with app.amqp.Producer(broker) as producer:
            scheduler.apply_async(entry, producer=producer, advance=False)
        message = heard.get(timeout=PATIENCE)
        heard.close()
    assert message.headers["task"] == "runs.tasks.tick"
    assert message.headers["expires"] is not None
    (args, _, _) = message.decode()
    driven_clock.forward(600)
    app.tasks[message.headers["task"]](*args)
    assert fired(agent) == ["12:10"]


def test_an_agent_that_rests_is_not_in_beats_schedule() -> None:
    queue.pause(applied("*/10 * * * *"))
    assert "default/dev" not in DatabaseScheduler(app=app, lazy=True).all_as_schedule()
