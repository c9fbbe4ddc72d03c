"""Messages to runs that have begun: who hears them, when, and what the sender is told.

    waits for an answer            direct        it is the answer
    not over                       queued        heard when its mode says
    at work, mode interrupt        interrupted   what is under way stops for it
    over                           restarted     another run of the same session goes on from its transcript

The row of the run it was sent to is locked first, so what is decided here is still so when it is stored, and two
requests with one key cannot both be first. If that run is over and another of its session is not, that one hears it;
its row is locked second, and nobody locks the two the other way round.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

from django.db import transaction
from django.db.models import Q

from agents import clock, storable
from agents.models import Kind
from agents.redaction import NOTHING_SECRET
from runs import approvals, bells, events, lifecycle, queue
from runs.lifecycle import Cause
from runs.models import (
    TERMINAL,
    InputMode,
    InputState,
    Run,
    RunInput,
    Status,
    TriggerKind,
    WaitReason,
)

MODES: dict[str, InputMode] = {
    **{mode.value: mode for mode in InputMode},
    "steer-backlog": InputMode.STEER,
    "": InputMode.FOLLOWUP,
}
OUTCOMES = ("direct", "queued", "interrupted", "restarted")
LIVE = Q(status__in=[Status.PENDING, Status.PROCESSING, Status.WAITING])


class HearsNothing(Exception):
    """The run is a program that is its own agent: nobody in it listens."""


def send(
    run: Run, message: str, mode: InputMode, *, trigger: TriggerKind, idempotency_key: str = ""
) -> tuple[RunInput, bool]:
    """Say something to a run. The input, and whether it is new: a key used before gives the first one's.

    `trigger` is why a new run exists, if the input starts one. Raises HearsNothing, and as
    queue.submit.
    """
    message = storable.text(message)
    digest = hashlib.sha256(json.dumps([message, mode]).encode()).hexdigest()
    with transaction.atomic():
        events.append(run.pk, [], redactor=NOTHING_SECRET)
        run = Run.objects.select_related("agent").get(pk=run.pk)
        known = taken(run, idempotency_key)
        if known is not None and known.request_digest != digest:
            raise queue.KeyReused(hearer(known).pk)
        if known is not None:
            return known, False
        new = RunInput(message=message, mode=mode, idempotency_key=idempotency_key, request_digest=digest)
        accept(run, new, trigger)
    return new, True


def taken(run: Run, idempotency_key: str) -> RunInput | None:
    """What came with this key before, to this run or, by way of it, to another of its session."""
    if not idempotency_key:
        return None
    its = Q(run=run)
    if run.session_key:
        its |= Q(run__agent=run.agent_id, run__session_key=run.session_key)
    return RunInput.objects.filter(its, idempotency_key=idempotency_key).order_by("pk").first()


def hearer(sent: RunInput) -> Run:
    """The run that hears it: the new one, where it started one."""
    return sent.restarted or sent.run


def accept(run: Run, new: RunInput, trigger: TriggerKind) -> None:
    """Give it to the run, to the active one of its session, or to a new one. The run's row is locked."""
    if not run.terminal:
        give(run, new)
        return
    while (active := active_of_session(run)) is not None:
        if events.append(active.pk, [], redactor=NOTHING_SECRET, where=LIVE):
            give(Run.objects.get(pk=active.pk), new)
            return
    restart(run, new, trigger)


def active_of_session(run: Run) -> Run | None:
    """The one at work, else the first in line."""
    if not run.session_key:
        return None
    mates = Run.objects.filter(LIVE, agent_id=run.agent_id, session_key=run.session_key)
    return mates.exclude(status=Status.PENDING).first() or mates.order_by("pk").first()


def give(run: Run, new: RunInput) -> None:
    """To a run that is not over and whose row is locked. Raises HearsNothing."""
    if run.agent.kind == Kind.COMMAND:
        raise HearsNothing(run.pk)
    new.run = run
    if run.status == Status.WAITING and run.wait_reason == WaitReason.INPUT:
        new.state, new.delivered_at = InputState.DELIVERED, clock.now()
        store(new, "direct")
        queue.respond(run, new.message)
        return
    stop = HOW_TO_STOP.get((run.status, run.wait_reason)) if new.mode == InputMode.INTERRUPT else None
    stops = stop is not None and stop(run)
    store(new, "interrupted" if stops else "queued")


def interrupt_step(run: Run) -> bool:
    """Whoever works on it will look. False: nobody can be working on it."""
    if run.has_slot:
        bells.ring_run(run.pk, run.host_id)
    return run.has_slot


def interrupt_approval(run: Run) -> bool:
    """Nobody needs to decide any more: its step finds the interrupt and runs nothing. False: its time is up."""
    asked = approvals.open_one(run)
    if asked is None:
        return False
    try:
        approvals.refuse(run, asked.call.call_id, asked.digest, by="an interrupt")
    except approvals.CannotDecide:
        return False
    return True


def interrupt_wait(run: Run) -> bool:
    """It need not wait for a call or an event any longer: its step finds the interrupt."""
    return lifecycle.wake(run.pk, WaitReason(run.wait_reason))


HOW_TO_STOP: dict[tuple[str, str], Callable[[Run], bool]] = {
    (Status.PROCESSING, ""): interrupt_step,
    (Status.WAITING, WaitReason.APPROVAL): interrupt_approval,
    (Status.WAITING, WaitReason.HANDOFF): interrupt_wait,
    (Status.WAITING, WaitReason.TRIGGER): interrupt_wait,
}


def restart(old: Run, new: RunInput, trigger: TriggerKind) -> None:
    """Another run goes on where this one ended. The two are a session from now on, if the first had none."""
    if not old.session_key:
        old.session_key = old.pk
        events.append(old.pk, [], redactor=NOTHING_SECRET, session_key=old.session_key)
    new.restarted, _ = queue.submit(
        old.agent,
        Cause(trigger, caused_by=old.pk),
        input=new.message,
        session_key=old.session_key,
        resumed_from=old,
    )
    new.run, new.state, new.delivered_at = old, InputState.DELIVERED, clock.now()
    store(new, "restarted")


def store(new: RunInput, outcome: str) -> None:
    """The row and its event, under the lock of the run's row."""
    new.outcome = outcome
    new.save(force_insert=True)
    gone_on = {} if new.restarted is None else {"restarted": new.restarted.pk}
    said = events.New(
        "input", {"inputId": new.pk, "mode": new.mode, "outcome": outcome, "message": new.message, **gone_on}
    )
    events.append(new.run_id, [said], redactor=NOTHING_SECRET)


def interaction(run: Run) -> str:
    """What a message to the run would find: working, waiting_for_input or closed."""
    if run.terminal:
        return "closed"
    asks = run.status == Status.WAITING and run.wait_reason == WaitReason.INPUT
    return "waiting_for_input" if asks else "working"


def pending_count(run: Run) -> int:
    return 0 if run.terminal else RunInput.objects.filter(run=run, state=InputState.PENDING).count()


def state_of(sent: RunInput, run: Run) -> str:
    """Its state; nothing waits for a run that is over, also before somebody has written that down."""
    return InputState.DROPPED if run.status in TERMINAL and sent.state == InputState.PENDING else sent.state
