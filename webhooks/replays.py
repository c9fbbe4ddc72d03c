"""Stored deliveries, decided anew: one, or many in the order in which they came."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from django.db.models import QuerySet

from webhooks import dispatch, listeners
from webhooks.models import Delivery
from webhooks.received import Outcome

MOST = 100  # in one request: each is a transaction of its own


@dataclass(frozen=True)
class Replayed:
    """What came of one: an outcome, or else a `fault` in words."""

    delivery_id: str
    outcome: Outcome | None = None
    fault: str = ""

    @property
    def sentence(self) -> str:
        """Of the new delivery: its runs, or why there are none."""
        if self.outcome is None:
            return self.fault
        if not self.outcome.runs:
            return self.outcome.delivery.reason
        started = len(self.outcome.runs)
        return f"{started} run{'' if started == 1 else 's'}"


def replay(delivery: Delivery) -> Replayed:
    listeners.refresh()
    try:
        return Replayed(delivery.pk, dispatch.again(delivery))
    except dispatch.CannotRead as error:
        return Replayed(delivery.pk, fault=f"it cannot be replayed: {error}")


def replay_all(delivery_ids: Iterable[str], known: QuerySet[Delivery]) -> list[Replayed]:
    """Of those among `known`, oldest first; their bodies are read one at a time."""
    done = []
    for delivery_id in sorted(set(delivery_ids)):
        delivery = known.filter(pk=delivery_id).first()
        done.append(replay(delivery) if delivery else Replayed(delivery_id, fault="there is no such delivery"))
    return done
