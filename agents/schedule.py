"""When an agent's cron is due. Pure: the caller says what time it is, and the answer is aware UTC.

Fields as croner and Debian's cron have them: five, or six with leading seconds; names, L, #; @hourly and its kin.
A time of day that does not exist, or comes twice, on the day clocks change fires once; a schedule that begins
with a star (every hour, every ten minutes) follows the clock on the wall, as Debian's cron does.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from cronsim import CronSim, CronSimError

WORDS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
DAYS = ("SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT")
LONGEST = 100  # characters of an expression


class BadSchedule(ValueError):
    """The cron expression or the time zone cannot be read; the message says which."""


def check(expression: str, timezone: str) -> None:
    """Raises BadSchedule."""
    next(ticks(expression, timezone, after=datetime(2026, 1, 1, tzinfo=UTC)), None)


def upcoming(expression: str, timezone: str, *, after: datetime, count: int) -> list[datetime]:
    """The next `count` ticks after `after`."""
    return list(islice(ticks(expression, timezone, after=after), count))


def latest_due(expression: str, timezone: str, *, since: datetime, now: datetime) -> datetime | None:
    """The last tick in (since, now], or None. Raises BadSchedule.

    However long ago `since` is, no more is walked over than twice the way from that tick to `now`.
    """
    first = next(ticks(expression, timezone, after=since), None)
    if first is None or first > now:
        return None
    back = timedelta(minutes=1)
    while True:
        start = max(since, now - back)
        latest = None
        for tick in ticks(expression, timezone, after=start):
            if tick > now:
                break
            latest = tick
        if latest is not None or start == since:
            return latest
        back *= 2


def ticks(expression: str, timezone: str, *, after: datetime) -> Iterator[datetime]:
    """All ticks after `after`, each once and in order. Raises BadSchedule at the first."""
    zone = _zone(timezone)
    fields = _fields(expression)
    begin = after - timedelta(minutes=1)  # the minute under way may have seconds to come
    try:
        seconds = sorted(CronSim(" ".join(fields), begin.astimezone(zone)).seconds)
        # By minutes, because the library has its rules for changing clocks for five fields only.
        minutes = CronSim(" ".join(fields[-5:]), begin.astimezone(zone))
    except CronSimError as error:
        raise BadSchedule(f"{expression!r} is no cron expression: {error}") from error
    last = after
    for minute in minutes:
        start = minute.astimezone(UTC)
        for second in seconds:
            tick = start + timedelta(seconds=second)
            if tick > last:  # two times of day that do not exist may both come when the clock goes on
                yield tick
                last = tick


def _fields(expression: str) -> list[str]:
    """The fields as the library reads them: in capitals, and the last Friday as `5L`."""
    if len(expression) > LONGEST:
        raise BadSchedule(f"a cron expression of {len(expression)} characters; {LONGEST} is the most")
    fields = WORDS.get(expression.strip().lower(), expression).upper().split()
    if fields:
        fields[-1] = re.sub("|".join(DAYS), lambda name: str(DAYS.index(name[0])), fields[-1]).replace("#L", "L")
    return fields


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as error:
        raise BadSchedule(f"there is no time zone {name!r}") from error
