"""The ticks to come of several schedules, as pages and answers show them."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import islice
from operator import attrgetter
from zoneinfo import ZoneInfo

from agents.models import Schedule
from agents.schedule import BadSchedule


@dataclass(frozen=True)
class Tick:
    """A scheduled time, and whose it is."""

    at: datetime
    schedule: Schedule

    @property
    def jitter(self) -> timedelta:
        """By how much its run starts later."""
        return self.schedule.starts_at(self.at) - self.at

    def local(self, form: str = "%a %Y-%m-%d %H:%M:%S") -> str:
        """Fri 2026-11-20 09:00:00 Europe/Berlin"""
        zone = self.schedule.timezone
        return f"{self.at.astimezone(ZoneInfo(zone)):{form}} {zone}"

    def __str__(self) -> str:
        late = self.jitter
        return f"{self.local()}{f', {late.total_seconds():.0f} s later' if late else ''}"


def upcoming(schedules: Iterable[Schedule], *, after: datetime, count: int) -> list[Tick]:
    """The next `count` of all of them, in order; a schedule that cannot be read has none."""
    following = heapq.merge(*(_ticks(schedule, after) for schedule in schedules), key=attrgetter("at"))
    return list(islice(following, count))


def _ticks(schedule: Schedule, after: datetime) -> Iterator[Tick]:
    try:
        for at in schedule.ticks(after=after):
            yield Tick(at, schedule)
    except BadSchedule:
        return
