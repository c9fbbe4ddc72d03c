"""Slots that are lent: a command that waits for a call leaves its run's slot to others until the call is over.

Without that, a caller and its callee that share a slot would wait for each other for ever. `scale` holds all the
while: a slot comes back only when there is room, under the locks of the claim, before anybody in the line. A run
whose command ends without it stands in line like one that was woken.
"""

from __future__ import annotations

from datetime import timedelta

from django.db import transaction
from django.db.models import Q

from agents import clock
from agents.redaction import NOTHING_SECRET
from runs import bells, events, lifecycle, line
from runs.events import New
from runs.leases import Lease, LeaseLost
from runs.models import Attempt, CallState, Run, Status, ToolCall

HEARD_EVERY = timedelta(seconds=10)  # how often it is noted that somebody still waits
SILENT = timedelta(seconds=60)  # nobody waits any more: the slot is wanted back
LENT = Q(slot_lent_at__isnull=False)


def lend(attempt: Attempt) -> bool:
    """Leave the run's slot to others while a command of it waits.

    False: it is lent already, the run has none, or no command that could wait.
    """
    still_waits(attempt)
    where = line.SEATED & Q(status=Status.PROCESSING)
    with transaction.atomic():
        lent = events.append(
            attempt.run_id, [New("slot.lent")], redactor=NOTHING_SECRET, where=where, slot_lent_at=clock.now()
        )
        if lent and not in_command(attempt):  # asked only now: the end of a command takes the lock of the run's row
            transaction.set_rollback(True)
            return False
        if lent:
            bells.ring_agent(Run.objects.values_list("agent_id", flat=True).get(pk=attempt.run_id))
    return lent


def still_waits(attempt: Attempt) -> None:
    """Somebody who has lent the run's slot is there yet."""
    now = clock.now()
    mine = Run.objects.filter(LENT, pk=attempt.run_id, slot_wanted_at=None)
    mine.filter(slot_lent_at__lt=now - HEARD_EVERY).update(slot_lent_at=now)


def in_command(attempt: Attempt) -> bool:
    """Whether a command in the attempt's sandbox has begun and is not over."""
    return ToolCall.objects.filter(attempt=attempt, state=CallState.STARTED).exclude(sandbox_id="").exists()


def is_lent(run_id: str) -> bool:
    return Run.objects.filter(LENT, pk=run_id).exists()


def take_back(run_id: str) -> bool:
    """The slot again, if there is room: False, and then the run comes before everybody in the line."""
    run = Run.objects.select_related("agent__workspace").get(pk=run_id)
    if run.slot_lent_at is None:
        return True
    if run.slot_wanted_at is None:
        Run.objects.filter(LENT, pk=run_id, slot_wanted_at=None).update(slot_wanted_at=clock.now())
        run.refresh_from_db()
    return run.slot_wanted_at is None or (line.has_room_again(run.agent, run) and _take_back(run))


def _take_back(run: Run) -> bool:
    with transaction.atomic():
        agent = line.lock_agent(run.agent_id)
        if agent is None or not line.has_room_again(agent, run):
            return False
        where = Q(LENT, slot_wanted_at=run.slot_wanted_at)
        back = [New("slot.back")]
        events.append(run.pk, back, redactor=NOTHING_SECRET, where=where, **lifecycle.NOT_LENT)
    return not is_lent(run.pk)


def goes_on_without(run: Run, attempt: Attempt) -> bool:
    """Whether the run's slot is lent though no command of it waits: whoever waited has vanished."""
    return run.slot_lent_at is not None and not in_command(attempt)


def give_up(lease: Lease) -> None:
    """Stand in line for a slot, as a woken run does. Raises LeaseLost."""
    now = clock.now()
    guard = Q(lease_owner=lease.owner, lease_epoch=lease.epoch)
    sets = {**lifecycle.NOBODYS, **lifecycle.NOT_LENT, "has_slot": False, "queued_at": now, "waiting_since": now}
    with transaction.atomic(savepoint=False):
        if not events.append(lease.run_id, [New("slot.given_up")], redactor=NOTHING_SECRET, where=guard, **sets):
            raise LeaseLost(lease.run_id)
        bells.ring_agent(Run.objects.values_list("agent_id", flat=True).get(pk=lease.run_id))


def sweep() -> None:
    """Give back what is wanted, and what nobody has asked for in a while: its borrower may be dead."""
    now = clock.now()
    lent = Run.objects.filter(LENT)
    lent.filter(slot_lent_at__lt=now - SILENT, slot_wanted_at=None).update(slot_wanted_at=now)
    wanted = lent.filter(slot_wanted_at__isnull=False).order_by("slot_wanted_at", "pk")
    for run_id in wanted.values_list("pk", flat=True)[:100]:
        take_back(run_id)
