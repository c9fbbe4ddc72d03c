"""Append, notify, fetch: what happened to a run, numbered without gaps.

The number comes from the run's own row, in the UPDATE that opens the transaction. That row's lock orders the
writers, so no number becomes visible before a smaller one; a database sequence would allow both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypedDict

from django.db.models import F, Q

from agents import clock, storable
from agents.redaction import Redactor
from runs import bells
from runs.db import update_returning
from runs.models import Event, Run


@dataclass(frozen=True)
class New:
    """An event to append: a dotted type and a JSON object."""

    type: str
    data: dict[str, Any] = field(default_factory=dict)


class Stored(TypedDict):
    """An event as everyone outside gets it: REST, SSE, websocket and command line alike."""

    id: int
    type: str
    data: dict[str, Any]
    created_at: str


def append(
    run_id: str,
    events: Sequence[New],
    *,
    redactor: Redactor,
    where: Q | None = None,
    **sets: Any,
) -> bool:
    """Update the run and append `events`, if the run's row still is as `where` says; else change nothing.

    Call it first in a transaction: it takes the run row's lock and everything after it is ordered by that.
    False: the row did not fit, and the caller decides what that means. The only door for events, so the
    redactor passes here.
    """
    rows = Run.objects.filter(where or Q(), pk=run_id)
    last = update_returning(rows, "last_event", last_event=F("last_event") + len(events), **sets)
    if last is None:
        return False
    if events:
        insert(run_id, events, redactor=redactor, last=last)
    return True


def insert(run_id: str, events: Sequence[New], *, redactor: Redactor, last: int) -> None:
    """Store `events` as the numbers up to `last`, which the caller's own update of the run row has reserved."""
    now = clock.now()
    first = last - len(events) + 1
    Event.objects.bulk_create(
        Event(
            run_id=run_id,
            number=number,
            type=event.type,
            data=storable.json(redactor.json(event.data)),
            created_at=now,
        )
        for number, event in enumerate(events, first)
    )
    bells.notify(run_id, last)


def fetch(run_id: str, *, after: int = 0, limit: int = 500) -> list[Stored]:
    """Up to `limit` events with numbers above `after`, in order."""
    rows = Event.objects.filter(run_id=run_id, number__gt=after).order_by("number")[:limit]
    return [stored(row) for row in rows]


def stored(event: Event) -> Stored:
    return {
        "id": event.number,
        "type": event.type,
        "data": event.data,
        "created_at": isoformat(event.created_at),
    }


def isoformat(moment: datetime) -> str:
    """2026-11-20T10:00:00.000Z, as the contracts write times."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"


def status_change(old: str | None, new: str, reason: str = "") -> New:
    """The event that goes with every change of status."""
    return New("status.change", {"from": old, "to": new, **({"reason": reason} if reason else {})})
