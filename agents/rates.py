"""How many of something in how long, as in `60/10m`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from agents import schedule

OFF = "off"
MOST = 1_000_000
LONGEST = timedelta(days=7)


class BadRate(ValueError):
    """The text is no rate; the message says what one looks like."""


@dataclass(frozen=True)
class Rate:
    count: int
    within: timedelta


def rate(text: str) -> Rate | None:
    """None is no limit: nothing is written, or `off`. Raises BadRate."""
    if text in ("", OFF):
        return None
    count, _, within = text.partition("/")
    if not (count.isascii() and count.isdecimal() and len(count) <= 7 and 0 < int(count) <= MOST):
        raise BadRate(f"{text!r} is no rate: write a count and a time, such as 60/10m, or off")
    try:
        seconds = schedule.seconds(within)
    except ValueError as error:
        raise BadRate(f"{text!r} is no rate: {error}") from error
    if not 0 < seconds <= LONGEST.total_seconds():
        raise BadRate(f"{text!r} is no rate: its time must be from 1s to {LONGEST.days}d")
    return Rate(int(count), timedelta(seconds=seconds))
