"""What an operator must know: raised once for each subject, until it is over."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from django.db import IntegrityError, transaction

from agents import clock, storable
from runs.models import Alert

# What the watcher and the canaries find. Others have a kind of their own; docs/states.md lists them all.
SCHEDULE_LATE = "schedule.late"
SCHEDULE_MISSED = "schedule.missed"
FLEET_DEAF = "fleet.deaf"
QUEUE_DEAF = "queue.deaf"
ENGINE_DOWN = "engine.down"
RUN_SILENT = "run.silent"
LINE_STUCK = "line.stuck"
AGENT_SHUT_DOWN = "agent.shutdown"


def begin(kind: str, subject: str, message: str) -> bool:
    """Raise the alert. False: it stands already."""
    if Alert.objects.filter(kind=kind, subject=subject, cleared_at=None).exists():
        return False
    try:
        with transaction.atomic():
            Alert.objects.create(kind=kind, subject=subject, message=storable.text(message), raised_at=clock.now())
    except IntegrityError:  # another process saw it in the same moment
        return False
    return True


def end(kind: str, subject: str) -> bool:
    """The reason is gone. False: there was no such alert."""
    standing = Alert.objects.filter(kind=kind, subject=subject, cleared_at=None)
    return bool(standing.update(cleared_at=clock.now()))


def settle(kind: str, now_so: Mapping[str, str], *, undecided: Collection[str] = ()) -> None:
    """Make the standing alerts of a kind those of `now_so`: subject → message. Those of `undecided` are left alone."""
    standing = set(Alert.objects.filter(kind=kind, cleared_at=None).values_list("subject", flat=True))
    for subject in now_so.keys() - standing:
        begin(kind, subject, now_so[subject])
    for subject in standing - now_so.keys() - set(undecided):
        end(kind, subject)
