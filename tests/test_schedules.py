"""Several schedules of an agent, what each says of missed ticks, and clocks that change or are changed."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from agents import clock
from agents.models import Agent, AgentEvent, Schedule
from agents.spec import AgentSpec, ProjectSpec, ScheduleSpec
from runs import lateness, queue, ticks
from runs.models import Alert, DeadLetter, Run
from tests.conftest import DrivenClock
from tests.making import make_agent, make_workspace
from webhooks import projects

pytestmark = pytest.mark.django_db(transaction=True)

NOON = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture(autouse=True)
def noon(driven_clock: DrivenClock) -> DrivenClock:
    driven_clock.stand_at(NOON)
    return driven_clock


def scheduled(*schedules: dict[str, Any], scale: int = 1000, **changes: Any) -> Agent:
    return make_agent(schedules=schedules, scale=scale, **changes)


def look() -> list[Run]:
    """As a sweep does."""
    rows = Schedule.objects.select_related("agent__version", "agent__workspace")
    return [run for row in rows for run in ticks.fire(row, clock.now())]


def fired() -> list[str]:
    """The ticks that became runs, in the order in which they did."""
    moments = Run.objects.exclude(scheduled_for=None).order_by("pk").values_list("scheduled_for", flat=True)
    return [f"{moment:%H:%M:%S}".removesuffix(":00") for moment in moments if moment is not None]


def standing() -> list[str]:
    return list(Alert.objects.filter(cleared_at=None).values_list("kind", flat=True))


# --- several schedules --------------------------------------------------------------------------------------------


def test_each_schedule_of_an_agent_fires_and_a_time_of_two_starts_one_run(noon: DrivenClock) -> None:
    scheduled({"cron": "*/10 * * * *"}, {"cron": "*/15 * * * *"}, {"cron": "30 17 * * *", "timezone": "Asia/Kolkata"})
    for _ in range(30):
        noon.forward(60)
        look()
    assert fired() == ["12:10", "12:15", "12:20", "12:30"], "half past twelve comes once, though three name it"


def test_every_is_counted_from_its_anchor_without_drift(noon: DrivenClock) -> None:
    agent = scheduled({"cron": "@every 7m"})
    noon.forward(8 * 60 + 3)
    look()
    queue.pause(agent)
    noon.forward(8 * 60)
    look()
    queue.resume(Agent.objects.get(pk=agent.pk))
    for _ in range(6):
        noon.forward(95)
        look()
    assert fired() == ["12:07", "12:21"]
    assert lateness.expected_by(agent) == NOON + 29 * MINUTE


def test_a_schedule_that_stays_keeps_what_it_has_fired_and_a_changed_one_counts_from_now(noon: DrivenClock) -> None:
    def apply(*crons: str) -> None:
        spec = AgentSpec(name="dev", scale=9, schedules=tuple(ScheduleSpec(cron=cron) for cron in crons))
        projects.apply(make_workspace(), ProjectSpec(name="shop", agents=(spec,)))

    apply("*/10 * * * *", "@every 1h")
    noon.forward(15 * 60)
    apply("5 * * * *", "*/10 * * * *")
    look()
    assert fired() == ["12:10"], "five past was before the schedule was there"
    assert list(Schedule.objects.values_list("cron", flat=True)) == ["5 * * * *", "*/10 * * * *"]
    apply("5 * * * *", "*/10 * * * *")
    assert look() == []


def test_a_definition_of_before_has_its_one_schedule() -> None:
    stored = AgentSpec(name="dev").dump() | {"schedule": "@daily", "timezone": "Asia/Kolkata"}
    del stored["schedules"]
    assert AgentSpec.load(stored).schedules == (ScheduleSpec(cron="@daily"),)
    assert AgentSpec.load(stored | {"schedule": ""}).schedules == ()


# --- jitter -------------------------------------------------------------------------------------------------------


def test_jitter_moves_the_beginning_and_not_the_tick(noon: DrivenClock) -> None:
    agent = scheduled({"cron": "*/10 * * * *", "jitter_seconds": 300})
    row = Schedule.objects.get()
    begins = [row.starts_at(NOON + number * 10 * MINUTE) for number in range(1, 7)]
    waits = {begin - (NOON + number * 10 * MINUTE) for number, begin in enumerate(begins, 1)}
    assert len(waits) > 1
    assert all(timedelta() <= wait <= timedelta(minutes=5) for wait in waits)
    for number, begin in enumerate(begins, 1):
        assert lateness.expected_by(agent) == begin + lateness.grace()
        noon.stand_at(begin - timedelta(seconds=1))
        assert look() == []
        noon.stand_at(begin)
        [run] = look()
        assert run.scheduled_for == NOON + number * 10 * MINUTE
        assert look() == []


# --- ticks that were missed ---------------------------------------------------------------------------------------


def test_where_missed_ticks_are_skipped_nothing_starts_and_an_alert_says_so(noon: DrivenClock) -> None:
    scheduled({"cron": "*/10 * * * *", "missed": "skip"})
    noon.forward(35 * 60)
    assert look() == []
    noted = AgentEvent.objects.get()
    assert noted.type == "ticks.missed"
    assert (noted.data["first"][11:16], noted.data["last"][11:16], noted.tick) == ("12:10", "12:30", NOON + 30 * MINUTE)
    assert standing() == ["schedule.missed"]
    assert "from 2026-11-20 12:10:00 to 2026-11-20 12:30:00 UTC" in Alert.objects.get().message
    assert lateness.late_schedules(clock.now()) == {}, "it was told, so nobody is to be blamed for it"
    noon.stand_at(NOON + 40 * MINUTE)
    look()
    assert (fired(), standing()) == (["12:40"], [])


def test_an_alert_of_missed_ticks_goes_with_the_schedule(noon: DrivenClock) -> None:
    def apply(**says: Any) -> None:
        spec = AgentSpec.load({"name": "dev", **says})
        projects.apply(make_workspace(), ProjectSpec(name="shop", agents=(spec,)))

    apply(schedules=[{"cron": "*/10 * * * *", "missed": "skip"}])
    noon.forward(15 * 60)
    look()
    assert standing() == ["schedule.missed"]
    apply()
    assert standing() == []


def test_the_latest_is_made_up_for_within_its_window_only(noon: DrivenClock) -> None:
    scheduled({"cron": "0 * * * *", "missed_seconds": 1800})
    noon.stand_at(NOON + 149 * MINUTE)
    look()
    assert (fired(), standing()) == (["14:00"], [])
    noon.stand_at(NOON + 211 * MINUTE)
    assert look() == []
    assert (fired(), standing()) == (["14:00"], ["schedule.missed"])


def test_without_a_window_the_latest_is_made_up_for_however_old(noon: DrivenClock) -> None:
    scheduled({"cron": "0 13 20 11 *", "missed_seconds": 0})
    noon.forward(200 * 86_400)
    look()
    assert fired() == ["13:00"]


@pytest.mark.parametrize("overlap", ["skip", "queue"])
def test_all_missed_ticks_stand_in_line_oldest_first(noon: DrivenClock, overlap: str) -> None:
    scheduled({"cron": "*/10 * * * *", "missed": "all", "missed_seconds": 1800}, scale=1, overlap=overlap)
    noon.forward(65 * 60)
    look()
    assert fired() == ["12:40", "12:50", "13:00"]
    assert Run.objects.filter(status="pending").count() == 3
    assert standing() == ["schedule.missed"], "three are older than the window"
    noon.forward(5 * 60)
    look()
    waits = ["13:10"] if overlap == "queue" else []
    assert fired() == ["12:40", "12:50", "13:00", *waits], "in time again, the agent's own word on overlap counts"
    assert standing() == []


def test_all_is_made_up_for_a_hundred_at_a_time(noon: DrivenClock) -> None:
    scheduled({"cron": "* * * * *", "missed": "all"})
    noon.forward(150 * 60)
    assert [len(look()) for _ in range(3)] == [100, 50, 0]
    moments = [run.scheduled_for for run in Run.objects.order_by("pk") if run.scheduled_for]
    assert {later - earlier for earlier, later in pairwise(moments)} == {MINUTE}


def test_what_the_line_has_no_room_for_is_a_dead_letter(noon: DrivenClock) -> None:
    scheduled({"cron": "*/10 * * * *", "missed": "all"}, scale=1, max_work_queue=1)
    noon.forward(45 * 60)
    look()
    assert fired() == ["12:10", "12:20"]
    kept = DeadLetter.objects.order_by("pk").values_list("trigger_context__scheduledFor", flat=True)
    assert [text[11:16] for text in kept] == ["12:30", "12:40"]
    assert lateness.late_schedules(clock.now()) == {}


# --- clocks that are changed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("missed", ["skip", "latest", "all"])
def test_a_clock_set_forward_and_back_again_doubles_nothing_and_stops_nothing(noon: DrivenClock, missed: str) -> None:
    scheduled({"cron": "*/30 * * * *", "missed": missed})
    noon.forward(40 * 60 if missed == "latest" else 30 * 60)
    look()
    noon.forward(3 * 3600)
    look()
    ahead = set(fired())
    noon.stand_at(NOON + 45 * MINUTE)
    look()
    for _ in range(8):
        noon.forward(15 * 60)
        look()
    assert sorted(fired()) == sorted(ahead | {"13:00", "13:30", "14:00", "14:30"})
    assert AgentEvent.objects.filter(type="clock.set_back").exists()


@pytest.mark.parametrize(
    ("zone", "day", "fixed", "hourly"),
    [
        ("Europe/Berlin", "2026-03-29", {"02:30": "01:00"}, 23),
        ("Europe/Berlin", "2026-10-25", {"02:30": "00:30"}, 25),
        ("America/New_York", "2026-03-08", {"02:30": "07:00"}, 23),
        ("America/New_York", "2026-11-01", {"01:30": "05:30"}, 25),
        ("Australia/Lord_Howe", "2026-10-04", {"02:15": "15:30"}, 23),
        ("Australia/Lord_Howe", "2026-04-05", {"01:45": "14:45"}, 24),
    ],
)
def test_the_day_clocks_change_each_time_of_day_fires_once_and_each_hour_of_the_wall(
    noon: DrivenClock, zone: str, day: str, fixed: dict[str, str], hourly: int
) -> None:
    """A time in the gap, or one that comes twice, and every hour that the clock on the wall shows."""
    midnight = datetime.fromisoformat(f"{day}T00:00:00").replace(tzinfo=ZoneInfo(zone))
    noon.stand_at(midnight.astimezone(UTC) - timedelta(seconds=1))
    [(time, at)] = fixed.items()
    hour, minute = time.split(":")
    once = make_agent("once", schedule=f"{minute} {hour} * * *", timezone=zone, scale=1000)
    each = make_agent("each", schedule="0 * * * *", timezone=zone, scale=1000)
    end = (midnight + timedelta(days=1)).astimezone(UTC)
    while clock.now() < end - 30 * MINUTE:
        noon.forward(30 * 60)
        look()
    assert [f"{run.scheduled_for:%H:%M}" for run in Run.objects.filter(agent=once)] == [at]
    assert Run.objects.filter(agent=each).count() == hourly
