"""What was held, because too much had come before it, is taken when there is room: the first of each sender first."""

from __future__ import annotations

from django.db.models import Min

from agents import clock
from webhooks import dispatch, listeners
from webhooks.models import Delivery, DeliveryOutcome

MOST = 50  # of one sender, in one round


def sweep(_worker: object) -> None:
    take_due()


def take_due() -> None:
    """One round of the sweep. Several may be at it: each delivery is taken by one."""
    for source_id, sender in senders():
        for delivery_id in of_the_same(source_id, sender):
            if not take(delivery_id):
                break


def senders() -> list[tuple[int | None, str]]:
    """Those of whom one is held whose time has come, the one first whose first of these came first."""
    due = Delivery.objects.filter(held_until__lte=clock.now()).order_by()
    firsts = due.values("source", "sender").annotate(first=Min("pk")).order_by("first")
    return list(firsts.values_list("source", "sender"))


def of_the_same(source_id: int | None, sender: str) -> list[str]:
    held = Delivery.objects.filter(held_until__isnull=False, source=source_id, sender=sender)
    return list(held.order_by("pk").values_list("pk", flat=True)[:MOST])


def take(delivery_id: str) -> bool:
    """Whether the one behind it may be next."""
    try:
        outcome = listeners.currently(lambda: dispatch.take_held(delivery_id))
    except dispatch.CannotRead as error:
        held = Delivery.objects.filter(pk=delivery_id, held_until__isnull=False)
        reason = f"held until there was room, and then: {error}"
        held.update(outcome=DeliveryOutcome.SKIPPED, reason=reason, held_until=None)
        return True
    return outcome is not None and outcome.delivery.outcome != DeliveryOutcome.HELD
