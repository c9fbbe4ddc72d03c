"""When a schedule is due. Pure: the caller says what time it is, and the answer is aware UTC.

Fields as croner and Debian's cron have them: five, or six with leading seconds; names, L, #; @hourly and its kin.
A time of day that does not exist, or comes twice, on the day clocks change fires once; a schedule that begins
with a star (every hour, every ten minutes) follows the clock on the wall, as Debian's cron does.
`@every 15m` knows no zone: it is counted from its anchor, the moment the schedule was made.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice, pairwise
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
EVERY = "@every"
SHORTEST = timedelta(seconds=10)  # of @every
LONGEST_LENGTH = timedelta(days=366)
UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)  # an anchor where none counts
LOOKED_AT = 50  # ticks, for the shortest time between two


class BadSchedule(ValueError):
    """The expression or the time zone cannot be read; the message says which."""


def check(expression: str, timezone: str) -> None:
    """Raises BadSchedule."""
    _zone(timezone)
    next(ticks(expression, timezone, after=EPOCH), None)


def seconds(text: str) -> int:
    """Of a length of time such as 90s, 15m, 1h30m or 2d. Raises ValueError."""
    pairs = re.findall(r"([0-9]{1,9})([smhd])", text)
    if not pairs or "".join(map("".join, pairs)) != text:
        raise ValueError(f"{text!r} is no length of time: write 90s, 15m, 1h30m or 2d")
    return sum(int(count) * UNITS[unit] for count, unit in pairs)


def upcoming(
    expression: str, timezone: str, *, after: datetime, count: int, anchor: datetime = EPOCH
) -> list[datetime]:
    """The next `count` ticks after `after`."""
    return list(islice(ticks(expression, timezone, after=after, anchor=anchor), count))


def check_jitter(expression: str, jitter_seconds: int) -> None:
    """No tick may come before the one behind it has begun. Raises BadSchedule."""
    found = upcoming(expression, "UTC", after=EPOCH, count=LOOKED_AT) if jitter_seconds else []
    if any(later - earlier <= timedelta(seconds=jitter_seconds) for earlier, later in pairwise(found)):
        raise BadSchedule(f"jitter must be shorter than the time between two ticks of {expression}")


def delay(jitter_seconds: int, *of: object) -> timedelta:
    """By how much a tick starts later, in whole seconds: the same whoever asks, and spread evenly."""
    drawn = hashlib.sha256("|".join(map(str, of)).encode()).digest()
    return timedelta(seconds=int.from_bytes(drawn[:8]) % (jitter_seconds + 1))


def latest_due(
    expression: str, timezone: str, *, since: datetime, now: datetime, anchor: datetime = EPOCH
) -> datetime | None:
    """The last tick in (since, now], or None. Raises BadSchedule.

    However long ago `since` is, no more is walked over than twice the way from that tick to `now`.
    """
    first = next(ticks(expression, timezone, after=since, anchor=anchor), None)
    if first is None or first > now:
        return None
    back = timedelta(minutes=1)
    while True:
        start = max(since, now - back)
        latest = None
        for tick in ticks(expression, timezone, after=start, anchor=anchor):
            if tick > now:
                break
            latest = tick
        if latest is not None or start == since:
            return latest
        back *= 2


def ticks(expression: str, timezone: str, *, after: datetime, anchor: datetime = EPOCH) -> Iterator[datetime]:
    """All ticks after `after`, each once and in order. Raises BadSchedule at the first."""
    interval = every(expression)
    return _intervals(interval, after, anchor) if interval else _times_of_day(expression, timezone, after)


def every(expression: str) -> timedelta | None:
    """The time between two ticks of an `@every`; None: it is cron. Raises BadSchedule."""
    word, _, text = " ".join(expression.split()).lower().partition(" ")
    if word != EVERY:
        return None
    try:
        interval = timedelta(seconds=seconds(text))
    except ValueError as error:
        raise BadSchedule(f"{expression!r}: {error}") from error
    if not SHORTEST <= interval <= LONGEST_LENGTH:
        raise BadSchedule(f"{expression!r} is out of bounds: {EVERY} takes 10s to 366d")
    return interval


def is_of_a_zone(expression: str) -> bool:
    """Whether the time zone means anything to it."""
    return not expression.strip().lower().startswith(EVERY)


def _intervals(interval: timedelta, after: datetime, anchor: datetime) -> Iterator[datetime]:
    number = max(1, (after - anchor) // interval + 1)
    while True:
        yield anchor + number * interval
        number += 1


def _times_of_day(expression: str, timezone: str, after: datetime) -> Iterator[datetime]:
    zone = _zone(timezone)
    fields = _fields(expression)
    begin = after - timedelta(minutes=1)  # the minute under way may have seconds to come
    try:
        offsets = sorted(CronSim(" ".join(fields), begin.astimezone(zone)).seconds)
        # By minutes, because the library has its rules for changing clocks for five fields only.
        minutes = CronSim(" ".join(fields[-5:]), begin.astimezone(zone))
    except CronSimError as error:
        raise BadSchedule(f"{expression!r} is no cron expression: {error}") from error
    last = after
    for minute in minutes:
        start = minute.astimezone(UTC)
        for offset in offsets:
            tick = start + timedelta(seconds=offset)
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
