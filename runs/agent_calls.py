"""Calls between agents: a run asks for another run, and sees what comes of it.

A called run is a run like any other, with trigger `call` and the caller as its parent. One implementation behind
the model's tools and the gateway's routes. What one run's state means for another's is done in a transaction of its
own, found by a query of the sweep; a bell makes it quick. Source: spec/action-llama.md 1.5.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection
from typing import TypedDict

from django.db import transaction
from django.db.models import Q

from agents import storable
from agents.ids import new_id
from agents.models import Agent
from agents.redaction import Redactor
from agents.spec import AgentSpec
from runs import bells, events, intake, lateness, lifecycle, secrets, signals, slots, trigger_waits
from runs.db import release_connection
from runs.events import New
from runs.lifecycle import Cause
from runs.lineage import Runaway
from runs.models import (
    TERMINAL,
    Attempt,
    CallState,
    Run,
    Status,
    ToolCall,
    TriggerKind,
    TriggerWait,
    TriggerWaitState,
    WaitReason,
)

DESCRIBED = 50  # agents that a prompt names
LOOK_EVERY = 0.2  # seconds, of who waits on a thread
CHECK_CALL = "check_call"  # the tool that parks its run until a call is over
LATE = frozenset({"TIMEOUT", "IDLE_TIMEOUT"})  # error codes of a called run that has used up its time
OVER = frozenset({"completed", "error"})


class Refused(Exception):
    """There is no such call to be had; the message is the reason, in the contract's words."""


class NoSuchCall(Exception):
    """There is none, or it is another run's."""


class CallStatus(TypedDict, total=False):
    """What the caller is told."""

    status: str  # pending | running | completed | error
    returnValue: str
    errorMessage: str


# --- calling ------------------------------------------------------------------------------------------------------


def call(caller: Attempt, target: str, context: str, *, redactor: Redactor | None = None) -> str:
    """A run of the agent `target` with `context`, or the one that waited for it; the call's id. Raises Refused."""
    redactor = redactor or secrets.redactor_of(caller)
    context = redactor.text(storable.text(context))
    with transaction.atomic():
        if not events.append(caller.run_id, [], redactor=redactor, where=~Q(status__in=TERMINAL)):
            raise Refused("caller container exited")
        run = Run.objects.select_related("agent", "version").get(pk=caller.run_id)
        agent = callable_by(run, target)
        called = start(run, agent, context)
        made = {"callId": id_of(called), "targetAgent": target, "run": called, "context": context}
        events.append(run.pk, [New("call", made)], redactor=redactor)
    return id_of(called)


def callable_by(run: Run, target: str) -> Agent:
    """The agent of that name in the run's workspace. Raises Refused."""
    if target == run.agent.name:
        raise Refused("agent cannot call itself")
    if run.version is not None and len(run.ancestors) >= run.version.read().max_call_depth:
        raise Refused("trigger depth limit reached")
    agent = Agent.objects.filter(workspace_id=run.workspace_id, name=target).first()
    if agent is None:
        raise Refused(f'target agent "{target}" not found')
    if any(name == target for _, name in run.ancestors):
        raise Refused(f"agent {target} is already in the call chain")
    if agent.workspace.paused_at is not None:
        raise Refused("scheduler is paused")  # the contract's words
    if agent.refusal:
        raise Refused(f'target agent "{target}" is disabled')
    return agent


def described_to(run: Run, spec: AgentSpec) -> list[str]:
    """The agents that the run may call, one text for each, in the order of their names."""
    if not spec.reaches_gateway or len(run.ancestors) >= spec.max_call_depth:
        return []
    above = {run.agent.name, *(name for _, name in run.ancestors)}
    callable_now = lateness.able().filter(workspace_id=run.workspace_id)
    found = callable_now.exclude(name__in=above).order_by("name").values_list("name", "description")
    return [f"{name}: {description}" if description else name for name, description in found[:DESCRIBED]]


def start(run: Run, agent: Agent, context: str) -> str:
    """The id of the run that takes the call. Raises Refused."""
    given = {"caller": run.agent.name, "context": context}
    resumed = trigger_waits.resume_one_of(agent, run.agent.name, given, caused_by=run.pk)
    if resumed is not None:
        return resumed
    chain = [*run.ancestors, [run.pk, run.agent.name]]
    try:
        new = intake.take(agent, Cause(TriggerKind.CALL, given, run.pk), id=new_id("run"), parent=run, ancestors=chain)
    except intake.QueueFull as full:
        raise Refused("queue full") from full
    except (intake.Coalesced, Runaway) as known:
        raise Refused(str(known)) from known
    return new.pk


# --- asking -------------------------------------------------------------------------------------------------------


def status(caller: Attempt, call_id: str) -> CallStatus:
    """What has become of a call of the caller's. Raises NoSuchCall."""
    run = called_by(caller, call_id)
    if not run.terminal:
        return {"status": "pending" if run.status == Status.PENDING else "running"}
    if run.status != Status.FINISHED:
        return {"status": "error", "errorMessage": error_message(run)}
    if run.return_value is None:
        return {"status": "completed"}
    return {"status": "completed", "returnValue": run.return_value}


def error_message(run: Run) -> str:
    code = run.error["code"] if run.error else run.status.upper()
    return "call timed out" if code in LATE else f"agent run failed ({code})"


def called_by(caller: Attempt, call_id: str) -> Run:
    """Raises NoSuchCall."""
    run = Run.objects.filter(pk=run_of(call_id)).first()
    if run is None or not (run.parent_id == caller.run_id or resumed_by(caller, run)):
        raise NoSuchCall(call_id)
    return run


def resumed_by(caller: Attempt, run: Run) -> bool:
    """Whether the run had waited for a call, and went on with one of the caller's."""
    went_on = TriggerWait.objects.filter(run=run, kind=trigger_waits.AGENT_TRIGGER, caused_by=caller.run_id)
    return went_on.filter(state=TriggerWaitState.RESUMED).exists()


def id_of(run_id: str) -> str:
    """The call's id: the run's, in the form of a UUID (version 8), as agents know it."""
    digits = run_id.removeprefix("run_")
    return str(uuid.UUID(f"{digits[:12]}8{digits[12:15]}8{digits[15:]}00"))


def run_of(call_id: str) -> str:
    """The other way; empty if it is no call's id."""
    try:
        digits = uuid.UUID(call_id).hex
    except ValueError:
        return ""
    run_id = f"run_{digits[:12]}{digits[13:16]}{digits[17:30]}"
    return run_id if id_of(run_id) == call_id.lower() else ""


# --- waiting in a command -----------------------------------------------------------------------------------------


def begin_wait(caller: Attempt, call_id: str) -> None:
    """A command of the caller's waits from now on: its slot is lent to others, unless the call is over.

    Say it again every half minute at least, while somebody waits: a slot whose borrower is silent is taken back.
    Raises NoSuchCall.
    """
    if status(caller, call_id)["status"] in OVER:
        return
    if slots.lend(caller):
        with transaction.atomic():
            bells.ring_agent(called_by(caller, call_id).agent_id)


def wait_over(caller: Attempt, call_id: str) -> CallStatus | None:
    """The status, once the call is over and the caller has its slot back; None until then. Raises NoSuchCall."""
    now = status(caller, call_id)
    if now["status"] not in OVER:
        slots.still_waits(caller)
        return None
    return now if slots.take_back(caller.run_id) else None


def wait(caller: Attempt, call_id: str, seconds: float) -> CallStatus | None:
    """Wait for that, on this thread; None if the time was up first. Raises NoSuchCall."""
    end = time.monotonic() + seconds
    begin_wait(caller, call_id)
    while (over := wait_over(caller, call_id)) is None and time.monotonic() < end:
        release_connection()
        time.sleep(LOOK_EVERY)
    return over


# --- from one run to another --------------------------------------------------------------------------------------


def look_around(run_id: str) -> None:
    """What the run's state means for its caller, its calls and itself."""
    run = Run.objects.filter(pk=run_id).first()
    if run is None:
        return
    if run.terminal:
        wake_parked([run.parent_id] if run.parent_id else [])
        if run.status != Status.FINISHED:
            cancel_called(Q(parent=run))
    elif run.wait_reason == WaitReason.HANDOFF:
        wake_parked([run.pk])
    elif run.wait_reason == WaitReason.TRIGGER:
        trigger_waits.wake(run.pk)


def sweep() -> None:
    """The same for all runs: bells may be lost."""
    parked = Run.objects.filter(status=Status.WAITING, wait_reason=WaitReason.HANDOFF, wake_at__isnull=False)
    wake_parked(list(parked.order_by("wake_at").values_list("pk", flat=True)))
    cancel_called(Q(parent__isnull=False))


def wake_parked(run_ids: Collection[str]) -> None:
    """Of these callers, let those go on that are parked for a call which is over."""
    asking = ToolCall.objects.filter(attempt__run__in=run_ids, state=CallState.STARTED, name=CHECK_CALL)
    asked = {run_id: run_of(str(arguments["call_id"])) for run_id, arguments in
             asking.values_list("attempt__run_id", "arguments")}  # fmt: skip
    alive = set(
        Run.objects.filter(pk__in=set(asked.values())).exclude(status__in=TERMINAL).values_list("pk", flat=True)
    )
    for run_id, called in asked.items():
        if called not in alive:
            lifecycle.wake(run_id, WaitReason.HANDOFF)


def cancel_called(which: Q) -> None:
    """Of these runs, cancel those whose caller was canceled, or has shut itself down."""
    gone = Q(parent__status=Status.CANCELED) | Q(parent__status=Status.FAILED, parent__error__code=signals.SHUTDOWN)
    for statuses in LIVE:
        orphans = Run.objects.filter(statuses, which, gone, trigger=TriggerKind.CALL, cancel_requested_at=None)
        for run_id in orphans.order_by().values_list("pk", flat=True)[:100]:
            if not lifecycle.cancel_idle(run_id):
                lifecycle.request_cancel(run_id)


# One query each, so that the index of each serves it.
LIVE = (
    Q(status=Status.PENDING),
    Q(status=Status.PROCESSING, has_slot=True),
    Q(status=Status.PROCESSING, has_slot=False),
    Q(status=Status.WAITING),
)
