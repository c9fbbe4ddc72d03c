"""Deliveries are kept for so many days, whole; then they go, but for what is still held or has a run that is not over.

What a run was told stays with the run.
"""

from __future__ import annotations

from datetime import timedelta

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet

from agents import clock
from agents.ids import first_id
from runs import sweep
from runs.models import TERMINAL, Run
from webhooks.models import Delivery

EVERY = 10.0  # seconds
AT_ONCE = 500  # deliveries of one transaction


def part(worker: sweep.Worker) -> None:
    """A part of the sweep."""
    if settings.DELIVERY_RETENTION_DAYS and sweep.is_time(worker, "deliveries", EVERY):
        purge()


def purge() -> int:
    """How many have gone. Several workers may be at it: each takes others."""
    with transaction.atomic():
        locked = outlived().select_for_update(skip_locked=True, of=("self",)).order_by("pk")
        ids = list(locked.values_list("pk", flat=True)[:AT_ONCE])
        Delivery.objects.filter(duplicate_of__in=ids).update(duplicate_of=None)
        Delivery.objects.filter(replay_of__in=ids).update(replay_of=None)
        # Nothing else refers to them; `delete` would read every body first.
        Delivery.objects.filter(pk__in=ids)._raw_delete("default")  # noqa: SLF001
    return len(ids)


def outlived() -> QuerySet[Delivery]:
    """Their ids tell their age."""
    oldest_kept = clock.now() - timedelta(days=settings.DELIVERY_RETENTION_DAYS)
    caused = Run.objects.filter(caused_by=OuterRef("pk")).exclude(caused_by="")  # as the index has it
    live = caused.exclude(status__in=TERMINAL)
    return Delivery.objects.filter(~Exists(live), pk__lt=first_id("dlv", oldest_kept), held_until=None)
