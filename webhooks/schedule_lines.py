"""Schedules as people type them: one a line, and what is to be said of each behind bars."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, get_args

from agents import schedule
from agents.schedule import BadSchedule
from agents.spec import Missing, ScheduleSpec

DAY = 86_400  # seconds


def read(text: str, timezone: str) -> tuple[ScheduleSpec, ...]:
    """Raises BadSchedule, with the line it is about."""
    found = tuple(_schedule(line) for line in text.splitlines() if line.strip())
    seen: set[tuple[str, str]] = set()
    for said in found:
        zone = said.timezone or timezone
        schedule.check(said.cron, zone)
        schedule.check_jitter(said.cron, said.jitter_seconds)
        if (said.cron, zone) in seen:
            raise BadSchedule(f"{said.cron} stands here a second time")
        seen.add((said.cron, zone))
    return found


def written(schedules: Iterable[ScheduleSpec]) -> str:
    """`read` makes the same of it."""
    return "\n".join(" | ".join(_parts(said)) for said in schedules)


def _parts(said: ScheduleSpec) -> Iterator[str]:
    unsaid = ScheduleSpec(cron="")
    yield said.cron
    if said.timezone:
        yield f"zone {said.timezone}"
    if said.jitter_seconds:
        yield f"jitter {said.jitter_seconds}s"
    if said.missed != unsaid.missed:
        yield f"missed {said.missed}"
    if said.missed_seconds != unsaid.missed_seconds:
        yield f"within {said.missed_seconds}s"


def _schedule(line: str) -> ScheduleSpec:
    cron, *parts = (part.strip() for part in line.split("|"))
    said: dict[str, Any] = {}
    for part in parts:
        said |= _option(part)
    return ScheduleSpec(cron=cron, **said)


def _option(part: str) -> dict[str, Any]:
    word, _, value = part.partition(" ")
    match word:
        case "zone":
            return {"timezone": value.strip()}
        case "missed" if value in get_args(Missing):
            return {"missed": value}
        case "jitter":
            return {"jitter_seconds": _seconds(value, most=DAY)}
        case "within":
            return {"missed_seconds": _seconds(value, most=366 * DAY)}
    raise BadSchedule(f"{part!r} says nothing of a schedule: write zone, jitter, missed (skip, latest, all) or within")


def _seconds(text: str, *, most: int) -> int:
    try:
        seconds = schedule.seconds(text.strip())
    except ValueError as error:
        raise BadSchedule(str(error)) from error
    if seconds > most:
        raise BadSchedule(f"{text} is too long: {most // DAY}d is the most")
    return seconds
