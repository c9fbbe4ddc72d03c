"""The states of a run and every way from one to the next. No other module writes `Run.status`.

Each verb is one conditional UPDATE and one `status.change` event in the same transaction; whoever watches is
told when it commits. A verb that finds the run elsewhere than it expects changes nothing and says so.

    pending ──claim──▶ processing ──finish──▶ finished
       │                │  ▲   └────fail────▶ failed
       │        wait, retry wake
       │                ▼  │
       └──cancel──▶   waiting   ──cancel──▶ canceled
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import transaction
from django.db.models import F, Q
from pydantic import ValidationError

from agents import clock
from agents.models import Agent
from agents.redaction import NOTHING_SECRET, Redactor
from runs import attempts, bells, breaker, events, inbox, leases, limits, line, lineage, outgoing
from runs.leases import Lease, LeaseLost
from runs.models import (
    KEEP_THE_SLOT,
    Approval,
    ApprovalState,
    Attempt,
    Run,
    Status,
    TriggerKind,
    TriggerWait,
    TriggerWaitState,
    WaitReason,
)

# verb -> (statuses it may leave, status it leads to)
TRANSITIONS: dict[str, tuple[frozenset[Status], Status]] = {
    "create": (frozenset(), Status.PENDING),
    "claim": (frozenset({Status.PENDING}), Status.PROCESSING),
    "wait": (frozenset({Status.PROCESSING}), Status.WAITING),
    "retry": (frozenset({Status.PROCESSING}), Status.WAITING),
    "wake": (frozenset({Status.WAITING}), Status.PROCESSING),
    "finish": (frozenset({Status.PROCESSING}), Status.FINISHED),
    "fail": (frozenset({Status.PENDING, Status.PROCESSING, Status.WAITING}), Status.FAILED),
    "cancel": (frozenset({Status.PENDING, Status.PROCESSING, Status.WAITING}), Status.CANCELED),
}

NOBODYS: dict[str, Any] = {"lease_owner": "", "lease_expires_at": None}
NOT_LENT: dict[str, Any] = {"slot_lent_at": None, "slot_wanted_at": None}
ON_OTHERS = frozenset({WaitReason.HANDOFF, WaitReason.TRIGGER})  # other runs, and events, end these
NOTHING_SAID: dict[str, Any] = {"exit_requested": None, "rerun_requested": False, "return_value": None}


@dataclass(frozen=True)
class Cause:
    """Why a run exists."""

    trigger: TriggerKind
    context: dict[str, Any] | None = None
    caused_by: str = ""
    hops: int | None = None  # runs before it, where the caller knows them; else `lineage` looks at `caused_by`


def create(agent: Agent, cause: Cause, **fields: Any) -> Run:
    """A pending run in the agent's line. Raises lineage.Runaway."""
    now = clock.now()
    goes_on = "rerun_of" in fields or "resumed_from" in fields
    descent = lineage.of(cause.caused_by, hops=cause.hops, goes_on=goes_on)
    run = Run(
        workspace_id=agent.workspace_id,
        agent=agent,
        trigger=cause.trigger,
        trigger_context=cause.context or {},
        caused_by=cause.caused_by,
        root=descent.root,
        hops=descent.hops,
        status=TRANSITIONS["create"][1],
        last_event=1,
        **{"priority": agent.priority, "created_at": now, "queued_at": now, **fields},
    )
    with transaction.atomic():
        run.save(force_insert=True)
        change = events.status_change(None, run.status, cause.trigger)
        events.insert(run.pk, [change], redactor=NOTHING_SECRET, last=1)
        outgoing.note(run.pk, run.status)
        bells.ring_agent(agent.pk)
    return run


def claim(agent_id: int, *, owner: str, host_id: str) -> Lease | None:
    """Give a free slot of the agent to the next run in its line, with the lease of its first step.

    Woken runs stand before pending ones. None: no free slot, or nobody in line for this host. Locks the
    workspace (where it has a cap), then the agent, so two claims can never both take the last slot.
    """
    # The end of every run asks. Who comes now rings a bell of his own, so no lock is needed to find nobody.
    if line.is_empty(agent_id):
        return None
    with transaction.atomic():
        agent = line.lock_agent(agent_id)
        if agent is None or not line.has_room(agent):
            return None
        run = line.first(agent, host_id)
        if run is None:
            return None
        if run.status == Status.PENDING and (unreadable := _unreadable(agent)):  # a woken one has its own definition
            fail_pending(run, "CORRUPT", unreadable)
            return None
        lease = Lease(run.pk, owner, run.lease_epoch + 1)  # nobody else takes leases of a run without a slot
        return lease if _seat(run, agent, lease, host_id=host_id) else None


def wait(
    lease: Lease,
    reason: WaitReason,
    *,
    also: Sequence[events.New] = (),
    redactor: Redactor,
    wake_at: datetime | None = None,
    question: str = "",
) -> None:
    """Park the run: no thread, and for all but short machinery waits no slot. Raises LeaseLost.

    Call it inside the step's last transaction, which it opens with the lease's guard.
    """
    keeps = reason in KEEP_THE_SLOT
    now = clock.now()
    _move_leased(
        "wait",
        lease,
        also=also,
        redactor=redactor,
        change_reason=reason,
        wait_reason=reason,
        question=question,
        wake_at=wake_at,
        has_slot=keeps,
        waiting_since=now,
        **({"machinery_waits": F("machinery_waits") + 1} if keeps else {"takeovers": 0, **NOT_LENT}),
    )
    if reason in ON_OTHERS:
        bells.ring_around(lease.run_id)  # what it waits for may have come in this very moment
    if not keeps:
        _ring_next(lease.run_id)


def wake(
    run_id: str, reason: WaitReason, *, also: Sequence[events.New] = (), redactor: Redactor = NOTHING_SECRET
) -> bool:
    """A waiting run goes on: at once if it kept its slot, else from the head of its agent's line.

    False: it does not wait for this any more.
    """
    keeps = reason in KEEP_THE_SLOT
    now = clock.now()
    with transaction.atomic():
        moved = _move(
            "wake",
            run_id,
            where=Q(status=Status.WAITING, wait_reason=reason, has_slot=keeps),
            old=Status.WAITING,
            also=also,
            redactor=redactor,
            change_reason=reason,
            wait_reason="",
            question="",
            wake_at=None,
            queued_at=now,
            **(_moved_on(run_id, now) if keeps else {}),
        )
        if moved:
            agent_id, host_id = Run.objects.values_list("agent_id", "host_id").get(pk=run_id)
            bells.ring_run(run_id, host_id) if keeps else bells.ring_agent(agent_id)
    return moved


def retry(
    lease: Lease, run: Run, error: dict[str, Any], *, wake_at: datetime, host_id: str, redactor: Redactor
) -> None:
    """This attempt has failed with `error`; at `wake_at` the next begins on that host, in the same slot.

    Raises LeaseLost.
    """
    now = clock.now()
    with transaction.atomic(savepoint=False):
        number = Attempt.objects.filter(run_id=run.pk).count()
        failed = events.New("attempt.failed", {**error, "attempt": number, "next": events.isoformat(wake_at)})
        fresh = {"deadline_at": limits.deadline(run, run.version.read(), now) if run.version else None, "takeovers": 0}
        _move_leased(
            "retry",
            lease,
            also=[failed],
            redactor=redactor,
            change_reason=WaitReason.RETRY,
            wait_reason=WaitReason.RETRY,
            wake_at=wake_at,
            waiting_since=now,
            machinery_waits=0,
            host_id=host_id,
            **{**limits.unanswered(1), **fresh, **NOTHING_SAID},
        )
        attempts.close(run.pk, error)
        attempts.begin(run.pk, number + 1, host_id)


def finish(
    lease: Lease,
    output: str,
    *,
    redactor: Redactor,
    also: Sequence[events.New] = (),
    exit_code: int | None = None,
) -> None:
    """The work is done and says so. Raises LeaseLost."""
    with transaction.atomic(savepoint=False):
        done = {"output": output, "exit_code": exit_code, "error": None}
        agent_id = _end_leased("finish", lease, also=also, redactor=redactor, **done)
        breaker.succeeded(agent_id)


def fail(
    lease: Lease,
    code: str,
    message: str,
    *,
    redactor: Redactor,
    also: Sequence[events.New] = (),
    details: dict[str, Any] | None = None,
    exit_code: int | None = None,
) -> None:
    """The run is over and did not succeed. `code` is stable, `message` is for people. Raises LeaseLost."""
    error = {**(details or {}), "code": code, "message": redactor.text(message)}
    with transaction.atomic(savepoint=False):
        agent_id = _end_leased(
            "fail", lease, also=also, redactor=redactor, change_reason=code, error=error, exit_code=exit_code
        )
        breaker.failed(agent_id, code)


def cancel(lease: Lease, *, redactor: Redactor) -> None:
    """Carry out a cancel wish, after the sandbox is gone. Raises LeaseLost."""
    _end_leased("cancel", lease, redactor=redactor)


def fail_pending(run: Run, code: str, message: str) -> bool:
    """A run that cannot even begin has failed. False: it is not pending."""
    error = {"code": code, "message": message}
    with transaction.atomic():
        moved = _move(
            "fail",
            run.pk,
            where=Q(status=Status.PENDING),
            old=Status.PENDING,
            redactor=NOTHING_SECRET,
            change_reason=code,
            error=error,
            **_ended(),
        )
        if moved:
            _settle(run.pk)
            breaker.failed(run.agent_id, code)
    return moved


def replace(run_id: str, reason: str) -> bool:
    """Cancel a run that has not begun, because another takes its place. False: it has begun."""
    return _cancel_idle(run_id, Status.PENDING, reason)


def postpone(run_id: str, tick: datetime, cause: Cause) -> bool:
    """A scheduled run that has not begun stands for a later tick from now on. False: it has begun."""
    moved = events.New("tick.moved", {"to": events.isoformat(tick)})
    fields = {"scheduled_for": tick, "trigger_context": cause.context or {}}
    with transaction.atomic():
        return events.append(run_id, [moved], redactor=NOTHING_SECRET, where=Q(status=Status.PENDING), **fields)


def cancel_idle(run_id: str) -> bool:
    """Cancel a run nobody works on and nobody can be working on: pending, waiting, or woken and in line.

    False: it is none of these; ask with `request_cancel`. A parked run's sandbox is the sweep's to remove.
    """
    return any(_cancel_idle(run_id, old) for old in (Status.PENDING, Status.WAITING, Status.PROCESSING))


def fail_idle(run_id: str, error: dict[str, Any]) -> bool:
    """Fail a run with an attempt that nobody works on: one that waits, or is woken and in line. False: it is neither.

    `error` holds nothing secret.
    """
    sets = {"change_reason": error["code"], "error": error}
    with transaction.atomic():
        failed = any(_end_idle("fail", run_id, old, **sets) for old in (Status.WAITING, Status.PROCESSING))
        if failed:
            breaker.failed(Run.objects.values_list("agent_id", flat=True).get(pk=run_id), error["code"])
    return failed


def _cancel_idle(run_id: str, old: Status, reason: str = "") -> bool:
    return _end_idle("cancel", run_id, old, change_reason=reason, cancel_requested_at=clock.now())


def _end_idle(verb: str, run_id: str, old: Status, **sets: Any) -> bool:
    idle = Q(status=old) & (Q(has_slot=False) if old is Status.PROCESSING else Q())
    with transaction.atomic():
        moved = _move(verb, run_id, where=idle, old=old, redactor=NOTHING_SECRET, **_ended(), **sets)
        if moved:  # one that waits may have asked for leave; one at work has none to wait for
            asked = Approval.objects.filter(run_id=run_id, state=ApprovalState.PENDING)
            asked.update(state=ApprovalState.EXPIRED, decided_at=clock.now())
            _settle(run_id)
    return moved


def request_cancel(run_id: str) -> bool:
    """Leave the wish for whoever holds the run, and ring. False: the run is over, or the wish is there."""
    with transaction.atomic():
        where = Q(status=Status.PROCESSING, cancel_requested_at=None)
        wish = events.New("cancel.requested")
        asked = events.append(run_id, [wish], redactor=NOTHING_SECRET, where=where, cancel_requested_at=clock.now())
        if asked:
            bells.ring_run(run_id, Run.objects.values_list("host_id", flat=True).get(pk=run_id))
    return asked


def _move(
    verb: str,
    run_id: str,
    *,
    where: Q,
    old: Status,
    redactor: Redactor,
    also: Sequence[events.New] = (),
    change_reason: str = "",
    **sets: Any,
) -> bool:
    """The one UPDATE that changes a status, with its event. False: the row is not as `where` says."""
    allowed, new = TRANSITIONS[verb]
    assert old in allowed, f"{verb} does not leave {old}"
    change = events.status_change(old, new, change_reason)
    moved = events.append(run_id, [*also, change], redactor=redactor, where=where, status=new, **sets)
    if moved:
        outgoing.note(run_id, new, redactor=redactor)
    return moved


def _move_leased(verb: str, lease: Lease, **sets: Any) -> None:
    where = Q(lease_owner=lease.owner, lease_epoch=lease.epoch, status=Status.PROCESSING)
    with transaction.atomic(savepoint=False):
        if not _move(verb, lease.run_id, where=where, old=Status.PROCESSING, **{**NOBODYS, **sets}):
            raise LeaseLost(lease.run_id)


def _end_leased(verb: str, lease: Lease, **sets: Any) -> int:
    """The agent whose run has ended."""
    with transaction.atomic(savepoint=False):
        _move_leased(verb, lease, **limits.unanswered(1), **_ended(), **sets)
        return _settle(lease.run_id)


def _ended() -> dict[str, Any]:
    return {
        **NOBODYS,
        "finished_at": clock.now(),
        "has_slot": False,
        "wait_reason": "",
        "question": "",
        "wake_at": None,
        "waiting_since": None,
        **NOT_LENT,
    }


def _settle(run_id: str) -> int:
    """What goes with the end of a run, in its transaction; the agent whose run it was."""
    attempts.close(run_id)
    inbox.drop(run_id)
    TriggerWait.objects.filter(run_id=run_id, state=TriggerWaitState.WAITING).update(state=TriggerWaitState.DROPPED)
    agent_id, parent_id, status = Run.objects.values_list("agent_id", "parent_id", "status").get(pk=run_id)
    if parent_id or status != Status.FINISHED:  # it concerns others
        bells.ring_around(run_id)
    bells.ring_agent(agent_id)
    return agent_id


def _ring_next(run_id: str) -> None:
    bells.ring_agent(Run.objects.values_list("agent_id", flat=True).get(pk=run_id))


def _unreadable(agent: Agent) -> str:
    """Why the agent's definition cannot be read, in a sentence; empty if it can."""
    try:
        _ = agent.spec
    except ValidationError as error:
        return f"the definition of agent {agent.name} cannot be read: {error.error_count()} faults"
    return ""


def _seat(run: Run, agent: Agent, lease: Lease, *, host_id: str) -> bool:
    """Slot and lease for the run. False: it was canceled in this very moment; its end rings for the next."""
    now = clock.now()
    seat: dict[str, Any] = {
        "has_slot": True,
        "host_id": host_id,
        "lease_owner": lease.owner,
        "lease_epoch": lease.epoch,
        "lease_expires_at": now + leases.TERM,
    }
    if run.status == Status.PROCESSING:
        return _seat_woken(run, now, seat)
    seated = _move(
        "claim",
        run.pk,
        where=Q(status=Status.PENDING),
        old=Status.PENDING,
        redactor=NOTHING_SECRET,
        version=agent.version,
        started_at=now,
        progress_at=now,
        deadline_at=limits.deadline(run, agent.spec, now),
        **seat,
    )
    if seated:
        attempts.begin(run.pk, 1, host_id)
        if agent.broken:
            breaker.probing(agent, now)
    return seated


def _moved_on(run_id: str, now: datetime) -> dict[str, Any]:
    """The columns of a run that goes on after waiting: that time does not count against its limit."""
    since, deadline = Run.objects.values_list("waiting_since", "deadline_at").get(pk=run_id)
    waited = now - (since or now)
    return {
        "waiting_since": None,
        "deadline_at": deadline + waited if deadline else None,
        "progress_at": now,
        "lease_expires_at": now,
    }


def _seat_woken(run: Run, now: datetime, seat: dict[str, Any]) -> bool:
    """Back at work. The time it waited, for its answer and for the slot, does not count against its limit."""
    waited = now - (run.waiting_since or now)
    return events.append(
        run.pk,
        [events.New("run.resumed", {"waited_seconds": round(max(0.0, waited.total_seconds()), 3)})],
        redactor=NOTHING_SECRET,
        where=Q(status=Status.PROCESSING, has_slot=False),
        **{**_moved_on(run.pk, now), **seat},
    )
