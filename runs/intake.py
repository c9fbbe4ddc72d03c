"""What becomes of something that should start a run: a run, nothing, or a dead letter. Nothing is dropped in silence.

    the work is being done already      skipped, or it takes the place of what stands in line: see `Coalesce`
    the agent's line is full            a dead letter, which can be replayed
    too long a chain of runs led here   the same: see `lineage`
    else                                a run in the line

Callers that get an answer (REST, a person) are told by an exception; events, whose sender can do nothing about
it, go through `deliver`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from django.db import connection, transaction

from agents import clock, journal, storable
from agents.models import Agent, Coalesce
from runs import alerts, claim_keys, lifecycle, line
from runs.lifecycle import Cause
from runs.lineage import Runaway
from runs.models import DeadLetter, Run, Status, TriggerKind

NEAR = 64  # places from the end of the line from which on newcomers are let in one by one
LINES = 0x6C696E65  # the class of our locks among PostgreSQL's advisory ones
LIVE = (Status.PENDING, Status.PROCESSING, Status.WAITING)
DEAD_LETTERS = "dead_letters"  # the alert


class QueueFull(Exception):
    """The agent's line has no room; the message says how long it is."""


class Coalesced(Exception):
    """A live run of the same claim key does this work already."""

    def __init__(self, run_id: str, claim_key: str) -> None:
        super().__init__(f"{run_id} is at {claim_key} already")
        self.run_id = run_id


class AlreadyReplayed(Exception):
    """The dead letter has become a run; its id is the message."""


@dataclass(frozen=True)
class Delivered:
    """What became of an event: a run, or the reason why there is none."""

    run: Run | None = None
    reason: str = ""
    dead_letter: DeadLetter | None = None


def deliver(agent: Agent, cause: Cause, *, text: str = "") -> Delivered:
    """A run for the event, or the reason why not; where there is no room, a dead letter. In a transaction."""
    try:
        return Delivered(take(agent, cause, input=text))
    except Coalesced as known:
        journal.note(agent, "event.skipped", {"causedBy": cause.caused_by, "run": known.run_id})
        return Delivered(reason=f"agent {agent.name}: {known}")
    except QueueFull as full:
        letter = keep(agent, cause, text, code="QUEUE_FULL", reason=str(full))
        return Delivered(reason=f"{full}: kept as {letter.pk}", dead_letter=letter)
    except Runaway as stopped:
        letter = keep(agent, cause, text, code=stopped.code, reason=str(stopped))
        return Delivered(reason=f"{stopped}: kept as {letter.pk}", dead_letter=letter)


def take(agent: Agent, cause: Cause, **fields: Any) -> Run:
    """A run in the agent's line. Raises Coalesced, QueueFull, Runaway."""
    key = fields.pop("claim_key", "") or claim_keys.key_for(agent.claim_key, cause.context or {})
    with transaction.atomic():
        if key or line.length(agent) >= agent.queue_size - NEAR:
            one_by_one(agent)
            make_way(agent, key)
            check_room(agent)
        return lifecycle.create(agent, cause, claim_key=key, coalesce=agent.coalesce if key else "", **fields)


def one_by_one(agent: Agent) -> None:
    """From here to the end of the transaction nobody else comes here for this agent. SQLite lets one in anyway.

    Before any row is touched: whoever holds a row may not wait here.
    """
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", [LINES, agent.pk])


def make_way(agent: Agent, key: str) -> None:
    """Do with a live run of the same key what the agent says. Raises Coalesced."""
    if not key:
        return
    alive = Run.objects.filter(agent=agent, claim_key=key, status__in=LIVE)
    if agent.coalesce == Coalesce.SKIP and (known := alive.order_by("pk").values_list("pk", flat=True).first()):
        raise Coalesced(known, key)
    if agent.coalesce == Coalesce.REPLACE:
        for run_id in alive.filter(status=Status.PENDING).values_list("pk", flat=True):
            lifecycle.replace(run_id, "replaced by a later event")


def check_room(agent: Agent) -> None:
    """Raises QueueFull. Exact near the end of the line, where newcomers come one by one."""
    if line.length(agent) >= capacity(agent):
        raise QueueFull(f"the line of agent {agent.name} is full: it takes {agent.queue_size} beyond the free slots")


def capacity(agent: Agent) -> int:
    """How many may be pending: those that are about to start, and those that have to wait."""
    return agent.queue_size + max(0, agent.scale - line.slots_in_use(agent))


# --- dead letters -----------------------------------------------------------------------------------------------


def keep(agent: Agent, cause: Cause, text: str, *, code: str, reason: str) -> DeadLetter:
    """Keep the event until somebody replays it, and let an operator know."""
    letter = DeadLetter.objects.create(
        workspace_id=agent.workspace_id,
        agent=agent,
        code=code,
        reason=reason[:500],
        trigger=cause.trigger,
        trigger_context=storable.json(cause.context or {}),
        caused_by=cause.caused_by,
        input=storable.text(text),
        created_at=clock.now(),
    )
    alerts.begin(DEAD_LETTERS, str(agent.pk), f"{reason}; what came since is kept as dead letters")
    return letter


def replay(letter: DeadLetter) -> Run:
    """Start what the event would have started. Raises AlreadyReplayed, QueueFull, Coalesced, Runaway."""
    with transaction.atomic():
        mine = DeadLetter.objects.filter(pk=letter.pk, replayed_at=None).update(replayed_at=clock.now())
        if not mine:
            known = DeadLetter.objects.values_list("run_id", flat=True).get(pk=letter.pk)
            raise AlreadyReplayed(known or "a run that has been deleted")
        context = {**letter.trigger_context, "deadLetter": letter.pk}
        cause = Cause(TriggerKind(letter.trigger), context, letter.caused_by)
        run = take(letter.agent, cause, input=letter.input)
        DeadLetter.objects.filter(pk=letter.pk).update(run=run)
        if not DeadLetter.objects.filter(agent=letter.agent, replayed_at=None).exists():
            alerts.end(DEAD_LETTERS, str(letter.agent_id))
    return run
