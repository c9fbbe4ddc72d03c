"""Telling others of runs: a message is made in the transaction that changes a state, and kept until it is delivered.

A change that is rolled back has told nobody, and one that is committed is told at least once. Who sends is
`outgoing_sender`.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from django.db import connection, transaction
from django.db.models import Count, OuterRef, QuerySet, Subquery
from django.db.models.functions import Coalesce

from agents import clock
from agents.ids import first_id
from agents.redaction import NOTHING_SECRET, Redactor
from runs import alerts, bells, outgoing_bodies
from runs.models import Outgoing, OutgoingMessage, OutgoingState, Run

FAILED = "outgoing.failed"  # the alert: its subject is the outgoing webhook
TEST = "test"
KEPT = {OutgoingState.DELIVERED: timedelta(days=14), OutgoingState.FAILED: timedelta(days=90)}
PURGED_AT_ONCE = 500
# Asked at every change of every run: without the ORM it costs a few microseconds where nobody is told of anything.
_IS_THERE_ANY = f"SELECT 1 FROM {Outgoing._meta.db_table} WHERE active LIMIT 1"  # noqa: S608, SLF001 - a constant
_COLUMNS = (
    *("id", "workspace_id", "agent__name", "status", "wait_reason", "question", "error", "output", "trigger"),
    *("trigger_context", "caused_by", "hops", "cost", "turns", "scheduled_for"),
    *("created_at", "started_at", "finished_at"),
)


class SwitchedOff(Exception):
    """Nothing is sent to this address; the message says why and what to do."""


def note(run_id: str, status: str, *, redactor: Redactor = NOTHING_SECRET) -> None:
    """Make the messages about the state that the run has come to in this transaction, and ring when it commits."""
    if not (told := _told_of(status)):
        return
    run = Run.objects.select_related("agent").only(*_COLUMNS).get(pk=run_id)
    wanted = [one for one in told if one.workspace_id == run.workspace_id and _wants(one, run.agent.name)]
    OutgoingMessage.objects.bulk_create(
        OutgoingMessage(
            outgoing=one,
            run=run,
            type=outgoing_bodies.type_of(run),
            body=outgoing_bodies.about(run, one, redactor=redactor),
        )
        for one in wanted
    )
    if wanted:
        bells.ring_sender()


def _told_of(status: str) -> list[Outgoing]:
    with connection.cursor() as cursor:
        cursor.execute(_IS_THERE_ANY)
        if cursor.fetchone() is None:
            return []
    return [one for one in Outgoing.objects.filter(active=True) if not one.states or status in one.states]


def _wants(outgoing: Outgoing, agent: str) -> bool:
    return not outgoing.agents or agent in outgoing.agents


@transaction.atomic
def replay(message: OutgoingMessage) -> OutgoingMessage:
    """Send what was said then once more, as a message of its own. Raises SwitchedOff."""
    return _send(message.outgoing, type=message.type, body=message.body, run_id=message.run_id, replay_of=message)


@transaction.atomic
def test(outgoing: Outgoing) -> OutgoingMessage:
    """Send a message that only shows that it arrives. Raises SwitchedOff."""
    return _send(outgoing, type=TEST, body=outgoing_bodies.of_test(outgoing))


def _send(outgoing: Outgoing, **message: object) -> OutgoingMessage:
    if not outgoing.active:
        raise SwitchedOff(f"the outgoing webhook {outgoing.name} is switched off: apply its project to switch it on")
    made = OutgoingMessage.objects.create(outgoing=outgoing, **message)
    bells.ring_sender()
    return made


def switch_off(outgoing: Outgoing, why: str) -> None:
    """Nothing is made for it from now on, and what is due is not sent."""
    with transaction.atomic():
        Outgoing.objects.filter(pk=outgoing.pk).update(active=False)
        due = OutgoingMessage.objects.filter(outgoing=outgoing, state=OutgoingState.DUE)
        due.update(state=OutgoingState.FAILED, next_try_at=None, last_answer=why)


def settle(outgoing: Outgoing) -> None:
    """What was wrong with it is over."""
    alerts.end(FAILED, str(outgoing.pk))


def counted(rows: QuerySet[Outgoing], *, failed_from: str = "") -> QuerySet[Any]:
    """With `due` and `failed`: how many messages are still to be sent, and how many with such an id or later never are.

    Each is asked for by itself: a join would walk over all messages.
    """
    due = OutgoingMessage.objects.filter(state=OutgoingState.DUE)
    failed = OutgoingMessage.objects.filter(state=OutgoingState.FAILED, pk__gte=failed_from)
    return rows.annotate(due=_number(due), failed=_number(failed))


def _number(messages: QuerySet[OutgoingMessage]) -> Coalesce:
    mine = messages.filter(outgoing=OuterRef("pk")).order_by().values("outgoing")
    return Coalesce(Subquery(mine.annotate(number=Count("pk")).values("number")), 0)


def purge() -> None:
    """A batch of each kind of message that is over and old."""
    now = clock.now()
    for state, kept in KEPT.items():
        old = OutgoingMessage.objects.filter(state=state, pk__lt=first_id("out", now - kept)).order_by("pk")
        _delete(old.values_list("pk", flat=True)[:PURGED_AT_ONCE])


def _delete(ids: Iterable[str]) -> None:
    if chosen := list(ids):
        OutgoingMessage.objects.filter(pk__in=chosen).delete()
