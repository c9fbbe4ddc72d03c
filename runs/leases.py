"""Leases: who may write a run's next step, and for how long.

Taking one is a single UPDATE that asks for "no owner, or expired", never for "mine": two doorbells in one
process must not both pass. It adds one to `lease_epoch`, and every write of the step demands that epoch, so a
holder that was frozen or cut off can store nothing once somebody else has gone on.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any

from django.db import transaction
from django.db.models import F, Q, QuerySet

from agents import clock, private_files
from agents.redaction import NOTHING_SECRET
from runs import bells, events
from runs.db import update_returning
from runs.models import Run, Status

TERM = timedelta(seconds=20)
RENEW_EVERY = 5.0  # seconds
GIVE_UP_AFTER = 15.0  # seconds without a renewal; less than TERM, so that a holder stops before another starts
TAKEOVERS = 3  # in a row without progress; the next one fails the run
BACKOFF = (0, 2, 4, 8)  # seconds past the expiry before takeover 1, 2, 3 and the verdict
LONG_ENDED = timedelta(seconds=1)  # so that the sweep waits for no bell: nobody has rung one


@dataclass(frozen=True)
class Lease:
    run_id: str
    owner: str
    epoch: int


class LeaseLost(Exception):
    """The run has gone on without this process. Roll back, let go, leave."""


def take(run_id: str, owner: str) -> Lease | None:
    """The lease of a run that has a slot and is not being worked on, or None."""
    now = clock.now()
    ready = Run.objects.filter(pk=run_id, status=Status.PROCESSING, has_slot=True)
    mine: dict[str, Any] = {
        "lease_owner": owner,
        "lease_epoch": F("lease_epoch") + 1,
        "lease_expires_at": now + TERM,
    }
    epoch = update_returning(ready.filter(lease_owner=""), "lease_epoch", **mine)
    if epoch is not None:
        return Lease(run_id, owner, epoch)
    return _take_over(ready, mine, run_id, owner)


def _take_over(ready: QuerySet[Run], mine: dict[str, Any], run_id: str, owner: str) -> Lease | None:
    """The lease of a holder that let it run out."""
    expired = ready.filter(_expired(clock.now())).exclude(lease_owner="")
    with transaction.atomic():
        previous = expired.values_list("lease_owner", flat=True).first()
        if previous is None:
            return None
        guard = expired.filter(lease_owner=previous)
        epoch = update_returning(guard, "lease_epoch", **mine, takeovers=F("takeovers") + 1)
        if epoch is None:
            return None
        note = events.New("run.takeover", {"epoch": epoch, "from": previous, "to": owner})
        events.append(run_id, [note], redactor=NOTHING_SECRET)
    return Lease(run_id, owner, epoch)


def release(lease: Lease) -> None:
    """Let go between steps, or in the middle of one that cannot go on here. Whoever hears the bell continues."""
    with transaction.atomic():
        host = Run.objects.filter(pk=lease.run_id).values_list("host_id", flat=True).first()
        if held(lease).update(**freed(clock.now())):
            bells.ring_run(lease.run_id, host)


def end(leases: Collection[Lease]) -> None:
    """Let them run out now: whoever goes on takes over."""
    for lease in leases:
        held(lease).update(lease_expires_at=clock.now() - LONG_ENDED)


def freed(now: datetime) -> dict[str, object]:
    """The columns of a run nobody works on; the sweep looks at it from `now` on."""
    return {"lease_owner": "", "lease_expires_at": now}


def held(lease: Lease) -> QuerySet[Run]:
    """The run's row, if the lease is still good."""
    return Run.objects.filter(pk=lease.run_id, lease_owner=lease.owner, lease_epoch=lease.epoch)


def renew(owner: str, run_ids: Collection[str]) -> dict[str, tuple[int, bool]]:
    """Extend the owner's leases; {run: (epoch, cancel was asked for)} of those it really holds."""
    if not run_ids:
        return {}
    mine = Run.objects.filter(lease_owner=owner, pk__in=list(run_ids))
    mine.update(lease_expires_at=clock.now() + TERM)
    return {
        run_id: (epoch, wish is not None)
        for run_id, epoch, wish in mine.values_list("pk", "lease_epoch", "cancel_requested_at")
    }


def expire_of_dead(folder: Path, living: str) -> int:
    """End the leases of owners that are proven dead: their locked file on this host can be locked by us.

    Their steps count as taken over when somebody goes on, so a run that kills its worker does so four times.
    """
    expired = 0
    for file in folder.glob("*.owner"):
        owner = file.stem
        if owner == living:
            continue
        try:
            with private_files.locked(file):
                expired += _expire_of(owner)
                file.unlink()
        except private_files.Locked:
            continue
    return expired


def _expire_of(owner: str) -> int:
    ended = clock.now() - LONG_ENDED
    rows = Run.objects.filter(lease_owner=owner, lease_expires_at__gt=ended)
    return rows.update(lease_expires_at=ended)


def _expired(now: datetime) -> Q:
    """Expired, by more with every takeover that got nowhere."""
    expired = [
        Q(lease_expires_at__lte=now - timedelta(seconds=pause))
        & (Q(takeovers=count) if count < TAKEOVERS else Q(takeovers__gte=count))
        for count, pause in enumerate(BACKOFF)
    ]
    return reduce(or_, expired)
