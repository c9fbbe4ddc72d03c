"""Resource locks: of one workspace, one key has one holder, an attempt of a run.

All that wait for a lock's answer are answered in one transaction: what they need to know is read together, decided
on in Python one after the other, and written together. On PostgreSQL such transactions take turns, by an advisory
lock for each workspace; on SQLite every write does.

A lock that has run out, or whose attempt has ended, counts as free wherever it is looked at: the sweep only tidies up.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from django.db import connection, transaction
from django.db.models import Q, QuerySet

from agents import clock, storable
from runs.lock_table import Answer, Ask, Holder, Table, milliseconds
from runs.models import TERMINAL, Attempt, Lock, LockWait
from runs.models.gateway import digest_of

SWEPT = 1000  # locks of one sweep that are looked at for their workspaces
TURN = 0x6C6F636B  # the class of our advisory locks


def acquire(attempt: Attempt, key: str, *, seconds: float | None = None) -> Answer:
    """Get it, get it anew, or be told who has it; never waits. `key`: any text but an empty one."""
    return answer([Ask("acquire", Holder.of(attempt), key, seconds)])[0]


def release(attempt: Attempt, key: str) -> Answer:
    return answer([Ask("release", Holder.of(attempt), key)])[0]


def heartbeat(attempt: Attempt, key: str, *, seconds: float | None = None) -> Answer:
    """Keep it from running out."""
    return answer([Ask("heartbeat", Holder.of(attempt), key, seconds)])[0]


def held_by(attempt: Attempt) -> Answer:
    return answer([Ask("list", Holder.of(attempt))])[0]


def answer(asks: Sequence[Ask]) -> list[Answer]:
    """The answers, in the same order, of one transaction. Inside a caller's, that begins with its run's row."""
    if not asks:
        return []
    with transaction.atomic(savepoint=False):
        take_turn({ask.holder.workspace_id for ask in asks})
        table = Table(asks)
        answers = [table.answer(ask) for ask in asks]
        table.store()
    return answers


def release_all(run_id: str) -> None:
    """The locks and wishes of a run whose attempts end, in the transaction that ends them."""
    held = Lock.objects.filter(attempt__run_id=run_id)
    if workspace_id := held.values_list("workspace_id", flat=True).first():
        take_turn({workspace_id})
        held.delete()
        LockWait.objects.filter(attempt__run_id=run_id).delete()


def status(workspace_id: int) -> Answer:
    """Every lock of the workspace that counts, for its operators."""
    held = Lock.objects.filter(workspace=workspace_id).exclude(pk__in=dead().values("pk")).order_by("held_since", "pk")
    shown = [
        {
            "resourceKey": lock.key,
            "agentName": lock.holder.rpartition("-")[0],
            "holder": lock.holder,
            "heldSince": milliseconds(lock.held_since),
        }
        for lock in held
    ]
    return Answer(200, {"locks": shown})


def take_away(lock: Lock) -> bool:
    """An operator's word: free it, whoever has it. False: that attempt does not have it any more."""
    with transaction.atomic():
        take_turn({lock.workspace_id})
        gone, _ = Lock.objects.filter(pk=lock.pk, attempt_id=lock.attempt_id).delete()
    return gone > 0


def sweep() -> int:
    """Remove locks that have run out, and the wishes of those who then hold none; how many locks that were."""
    expired = Lock.objects.filter(expires_at__lte=clock.now()).order_by("expires_at")
    return sum(map(_sweep_workspace, set(expired.values_list("workspace_id", flat=True)[:SWEPT])))


def _sweep_workspace(workspace_id: int) -> int:
    with transaction.atomic():
        take_turn({workspace_id})
        expired = Lock.objects.filter(workspace=workspace_id, expires_at__lte=clock.now()).order_by()
        holders = set(expired.values_list("attempt_id", flat=True))
        gone, _ = expired.delete()
        LockWait.objects.filter(attempt__in=holders, attempt__locks=None).delete()
    return gone


def found(rows: QuerySet[Lock], word: str) -> QuerySet[Lock]:
    """Those with that very key or holder."""
    return rows.filter(Q(key_digest=digest_of(storable.text(word))) | Q(holder=word))


def dead() -> QuerySet[Lock]:
    """Those that count for nothing."""
    ended = Q(attempt__ended_at__isnull=False) | Q(attempt__run__status__in=TERMINAL)
    return Lock.objects.filter(Q(expires_at__lte=clock.now()) | ended).order_by()


def take_turn(workspace_ids: Collection[int]) -> None:
    """Until the transaction ends nobody else decides on these workspaces' locks. A run's row comes before it."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            for workspace_id in sorted(workspace_ids):
                cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", [TURN, workspace_id])
