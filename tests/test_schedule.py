"""When a cron is due: clocks that change, long gaps, and what cannot be read."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents import schedule
from agents.schedule import BadSchedule, check, latest_due, upcoming

NEW_YORK, BERLIN, LORD_HOWE = "America/New_York", "Europe/Berlin", "Australia/Lord_Howe"

# zone, the day the clocks go on, a time of day that does not exist then, when it comes instead
GONE = [
    (NEW_YORK, "2026-03-08", "2:30", "2026-03-08 07:00"),
    (BERLIN, "2026-03-29", "2:30", "2026-03-29 01:00"),
    (LORD_HOWE, "2026-10-04", "2:15", "2026-10-03 15:30"),
]
# zone, the day the clocks go back, a time of day that comes twice then, when it comes first
TWICE = [
    (NEW_YORK, "2026-11-01", "1:30", "2026-11-01 05:30"),
    (BERLIN, "2026-10-25", "2:30", "2026-10-25 00:30"),
    (LORD_HOWE, "2026-04-05", "1:45", "2026-04-04 14:45"),
]


def utc(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def local(text: str, zone: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=ZoneInfo(zone)).astimezone(UTC)


def between(expression: str, zone: str, start: datetime, end: datetime) -> list[datetime]:
    """All ticks in (start, end]."""
    found = []
    for tick in schedule.ticks(expression, zone, after=start):
        if tick > end:
            break
        found.append(tick)
    return found


def on_day(expression: str, zone: str, day: str) -> list[datetime]:
    start = local(f"{day} 00:00", zone) - timedelta(seconds=1)
    return between(expression, zone, start, start + timedelta(hours=23))


def cron(time_of_day: str, *, seconds: str = "") -> str:
    hour, _, minute = time_of_day.partition(":")
    return f"{seconds} {minute} {hour} * * *".strip()


# --- the days clocks change ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("zone", "day", "time", "instead"), GONE)
def test_a_time_that_does_not_exist_fires_once_when_the_clock_has_gone_on(
    zone: str, day: str, time: str, instead: str
) -> None:
    assert on_day(cron(time), zone, day) == [utc(instead)]
    assert on_day(cron(time, seconds="0"), zone, day) == [utc(instead)]
    assert on_day(cron(time, seconds="20,40"), zone, day) == [
        utc(instead) + timedelta(seconds=20),
        utc(instead) + timedelta(seconds=40),
    ]


@pytest.mark.parametrize(("zone", "day", "time", "first"), TWICE)
def test_a_time_that_comes_twice_fires_at_the_first(zone: str, day: str, time: str, first: str) -> None:
    assert on_day(cron(time), zone, day) == [utc(first)]
    assert on_day(cron(time, seconds="30"), zone, day) == [utc(first) + timedelta(seconds=30)]


@pytest.mark.parametrize(("zone", "day", "time", "at"), [*GONE, *TWICE])
def test_asked_from_any_moment_of_such_a_day_the_answer_is_the_same(zone: str, day: str, time: str, at: str) -> None:
    start = local(f"{day} 00:00", zone)
    for minutes in range(0, 6 * 60, 5):
        now = start + timedelta(minutes=minutes, seconds=30)
        (tick,) = upcoming(cron(time), zone, after=now, count=1)
        assert tick == utc(at) if now < utc(at) else tick > now + timedelta(hours=12)
        due = latest_due(cron(time), zone, since=start - timedelta(hours=1), now=now)
        assert due == (utc(at) if now >= utc(at) else None)


@pytest.mark.parametrize(("zone", "day", "time", "first"), TWICE)
def test_what_fired_before_the_clock_went_back_does_not_fire_again_after_it(
    zone: str, day: str, time: str, first: str
) -> None:
    for minutes in range(0, 120, 10):
        since = utc(first) + timedelta(minutes=minutes)
        assert latest_due(cron(time), zone, since=since, now=since + timedelta(hours=6)) is None


def test_two_times_that_do_not_exist_come_as_one() -> None:
    assert on_day("0,30 2 * * *", NEW_YORK, "2026-03-08") == [utc("2026-03-08 07:00")]
    assert on_day("0 1-3 * * *", NEW_YORK, "2026-03-08") == [utc("2026-03-08 06:00"), utc("2026-03-08 07:00")]


@pytest.mark.parametrize("zone", [NEW_YORK, BERLIN, LORD_HOWE])
def test_every_quarter_of_an_hour_comes_through_the_year_without_gap_or_double(zone: str) -> None:
    ticks = upcoming("*/15 * * * *", zone, after=utc("2026-01-01 00:00"), count=365 * 96)
    assert {later - earlier for earlier, later in pairwise(ticks)} == {timedelta(minutes=15)}


@pytest.mark.parametrize("zone", [NEW_YORK, BERLIN, LORD_HOWE])
@pytest.mark.parametrize("hour", range(24))
def test_every_time_of_day_comes_once_a_day_all_year(zone: str, hour: int) -> None:
    ticks = upcoming(f"45 {hour} * * *", zone, after=local("2026-01-01 00:00", zone), count=365)
    days = [tick.astimezone(ZoneInfo(zone)).date() for tick in ticks]
    assert days == [days[0] + timedelta(days=number) for number in range(365)]


# --- what fires when ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("30 9 * * MON-FRI", ["11-20 09:30", "11-23 09:30", "11-24 09:30"]),
        ("30 9 * * mon-fri", ["11-20 09:30", "11-23 09:30", "11-24 09:30"]),
        ("0 0 1 JAN,jul *", ["01-01 00:00", "07-01 00:00", "01-01 00:00"]),
        ("0 12 L * *", ["11-30 12:00", "12-31 12:00", "01-31 12:00"]),
        ("0 12 LW * *", ["11-30 12:00", "12-31 12:00", "01-29 12:00"]),
        ("0 12 * * 5L", ["11-27 12:00", "12-25 12:00", "01-29 12:00"]),
        ("0 12 * * FRI#L", ["11-27 12:00", "12-25 12:00", "01-29 12:00"]),
        ("0 12 * * friL", ["11-27 12:00", "12-25 12:00", "01-29 12:00"]),
        ("0 12 * * MON#2", ["12-14 12:00", "01-11 12:00", "02-08 12:00"]),
        ("0 12 * * 7", ["11-22 12:00", "11-29 12:00", "12-06 12:00"]),
        ("*/20 8-9 * * *", ["11-20 08:00", "11-20 08:20", "11-20 08:40"]),
        ("0 0 13 * FRI", ["11-27 00:00", "12-04 00:00", "12-11 00:00"]),  # either, when both are named
        ("@hourly", ["11-20 07:00", "11-20 08:00", "11-20 09:00"]),
        ("@daily", ["11-21 00:00", "11-22 00:00", "11-23 00:00"]),
        ("@midnight", ["11-21 00:00", "11-22 00:00", "11-23 00:00"]),
        (" @Weekly ", ["11-22 00:00", "11-29 00:00", "12-06 00:00"]),
        ("@monthly", ["12-01 00:00", "01-01 00:00", "02-01 00:00"]),
        ("@yearly", ["01-01 00:00", "01-01 00:00", "01-01 00:00"]),
        ("@annually", ["01-01 00:00", "01-01 00:00", "01-01 00:00"]),
    ],
)
def test_an_expression_fires_when_it_says(expression: str, expected: list[str]) -> None:
    ticks = upcoming(expression, "UTC", after=utc("2026-11-20 06:00"), count=3)
    assert [tick.strftime("%m-%d %H:%M") for tick in ticks] == expected
    assert all(tick.tzinfo is UTC for tick in ticks)
    check(expression, "UTC")


def test_seconds_come_first_where_there_are_six_fields() -> None:
    ticks = upcoming("*/20 * * * * *", "UTC", after=utc("2026-11-20 06:00:05"), count=4)
    assert [tick.strftime("%M:%S") for tick in ticks] == ["00:20", "00:40", "01:00", "01:20"]
    ticks = upcoming("15 30 9 * * *", BERLIN, after=utc("2026-11-20 08:30:14"), count=2)
    assert ticks == [utc("2026-11-20 08:30:15"), utc("2026-11-21 08:30:15")]


def test_the_zone_is_where_the_time_of_day_is_meant() -> None:
    assert upcoming("0 9 * * *", "Asia/Kolkata", after=utc("2026-11-20 00:00"), count=1) == [utc("2026-11-20 03:30")]


@pytest.mark.parametrize("fraction", [0, 1, 999_999])
def test_a_tick_is_after_the_moment_it_is_asked_from(fraction: int) -> None:
    moment = utc("2026-11-20 06:00:00")
    after = moment + timedelta(microseconds=fraction)
    assert upcoming("* * * * *", "UTC", after=after, count=1) == [moment + timedelta(minutes=1)]
    just_before = moment - timedelta(microseconds=1 + fraction)
    assert upcoming("* * * * *", "UTC", after=just_before, count=1) == [moment]


def test_every_counts_from_its_anchor_whatever_the_zone() -> None:
    anchor = utc("2026-11-20 06:00:07")
    ticks = upcoming("@every 1h30m", BERLIN, after=utc("2026-11-20 01:00"), count=2, anchor=anchor)
    assert ticks == [utc("2026-11-20 07:30:07"), utc("2026-11-20 09:00:07")]
    due = latest_due(" @Every  90s ", "UTC", since=anchor, now=utc("2027-11-20 06:00:00"), anchor=anchor)
    assert due == utc("2027-11-20 05:58:37")


def test_jitter_is_shorter_than_the_time_between_two_ticks() -> None:
    schedule.check_jitter("*/5 * * * *", 299)
    with pytest.raises(BadSchedule, match="jitter must be shorter"):
        schedule.check_jitter("0,30,31 * * * *", 60)


# --- what is due --------------------------------------------------------------------------------------------------


def test_due_is_the_latest_tick_since_the_last_and_no_later_than_now() -> None:
    hourly = "0 * * * *"
    assert latest_due(hourly, "UTC", since=utc("2026-11-20 06:00"), now=utc("2026-11-20 06:59:59")) is None
    assert latest_due(hourly, "UTC", since=utc("2026-11-20 06:00"), now=utc("2026-11-20 07:00")) == utc(
        "2026-11-20 07:00"
    )
    assert latest_due(hourly, "UTC", since=utc("2026-11-20 06:00"), now=utc("2026-11-20 11:30")) == utc(
        "2026-11-20 11:00"
    )
    assert latest_due(hourly, "UTC", since=utc("2026-11-20 08:00"), now=utc("2026-11-20 06:30")) is None


@pytest.mark.parametrize("zone", ["UTC", BERLIN])
@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("* * * * *", "11-20 12:34:00"),
        ("* * * * * *", "11-20 12:34:56"),
        ("@yearly", "01-01 00:00:00"),
        ("* * 5 * * *", "11-20 05:59:59"),
        ("0 0 29 2 *", "02-29 00:00:00"),
    ],
)
def test_after_years_of_silence_the_latest_tick_is_found_and_not_an_old_one(
    zone: str, expression: str, expected: str
) -> None:
    now = datetime(2026, 11, 20, 12, 34, 56, 789, tzinfo=ZoneInfo(zone)).astimezone(UTC)
    due = latest_due(expression, zone, since=utc("2019-11-20 00:00"), now=now)
    assert due is not None
    assert due.astimezone(ZoneInfo(zone)).strftime("%m-%d %H:%M:%S") == expected


EXPRESSIONS = [
    "* * * * *",
    "*/7 * * * *",
    "30 2 * * *",
    "0 1-3 * * *",
    "5 4 * * SUN",
    "*/30 1,2 * * *",
    "10 30 1 * * *",
]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    expression=st.sampled_from(EXPRESSIONS),
    zone=st.sampled_from([NEW_YORK, BERLIN, LORD_HOWE, "UTC"]),
    start=st.datetimes(datetime(2026, 1, 1), datetime(2027, 1, 1)),  # noqa: DTZ001 - made aware below
    hours=st.integers(min_value=0, max_value=60),
    seconds=st.integers(min_value=0, max_value=3600),
)
def test_what_is_due_is_the_last_of_the_walk(
    expression: str, zone: str, start: datetime, hours: int, seconds: int
) -> None:
    since = start.replace(tzinfo=UTC)
    now = since + timedelta(hours=hours, seconds=seconds)
    walked = between(expression, zone, since, now)
    assert walked == sorted(set(walked))
    assert all(tick > since for tick in walked)
    assert latest_due(expression, zone, since=since, now=now) == (walked[-1] if walked else None)


# --- what cannot be read ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("", "Wrong number of fields"),
        ("   ", "Wrong number of fields"),
        ("@reboot", "Wrong number of fields"),
        ("* * * *", "Wrong number of fields"),
        ("* * * * * * *", "Wrong number of fields"),
        ("60 * * * *", "minute"),
        ("60 * * * * *", "second"),
        ("* 24 * * *", "hour"),
        ("* * 32 * *", "day-of-month"),
        ("* * 0 * *", "day-of-month"),
        ("* * * 13 *", "month"),
        ("* * * * 8", "day-of-week"),
        ("* * * FOO *", "month"),
        ("* * * * MON#6", "day-of-week"),
        ("*/0 * * * *", "minute"),
        ("5-1 * * * *", "minute"),
        ("1,,2 * * * *", "minute"),
        ("-1 * * * *", "minute"),
        ("٣ * * * *", "minute"),
        ("0 0 30 2 *", "day-of-month"),
        ("1" * 99 + " * * * *", "characters"),
        ("every day at nine", "Wrong number of fields"),
        ("@every", "is no length of time"),
        ("@every 5", "is no length of time"),
        ("@every -5m", "is no length of time"),
        ("@every 9s", "out of bounds"),
        ("@every 367d", "out of bounds"),
    ],
)
def test_a_bad_expression_is_told_in_a_sentence(expression: str, words: str) -> None:
    with pytest.raises(BadSchedule, match=words):
        check(expression, "UTC")
    with pytest.raises(BadSchedule):
        latest_due(expression, "UTC", since=utc("2026-11-20 06:00"), now=utc("2026-11-20 07:00"))


@pytest.mark.parametrize("zone", ["", "Mars/Olympus", "Europe", "../../etc/passwd", "/etc/passwd", "UTC\0", "zone.tab"])
def test_a_bad_zone_is_told_in_a_sentence(zone: str) -> None:
    with pytest.raises(BadSchedule, match="there is no time zone"):
        check("0 9 * * *", zone)
