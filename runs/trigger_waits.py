"""Runs that wait for an event: the first that fits resumes the one that has waited longest, in place of a new run.

Which event it is, is settled in the transaction that takes the event in; the run is woken in one of its own, by a
bell or by the sweep. Source: spec/action-llama.md 1.9.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from django.db.models import Q, QuerySet

from agents import clock, storable
from agents.models import Agent
from runs import bells, lifecycle
from runs.models import Run, Status, ToolCall, TriggerWait, TriggerWaitState, WaitReason

WEBHOOK, AGENT_TRIGGER = "webhook", "agent_trigger"
Fits = Callable[[TriggerWait], bool]


def begin(call: ToolCall, run: Run, *, expires_at: datetime, **wanted: Any) -> TriggerWait:
    """In the transaction that parks the run. `wanted`: kind, source, event, match, source_agent."""
    return TriggerWait.objects.create(
        run=run, call=call, workspace_id=run.workspace_id, expires_at=expires_at, **storable.json(wanted)
    )


def of(call: ToolCall) -> TriggerWait | None:
    return TriggerWait.objects.select_related("call").filter(call=call).first()


def end(call: ToolCall) -> str | None:
    """Wait no longer. The event that has come meanwhile, as the model is told; None: there is none."""
    mine = TriggerWait.objects.filter(call=call)
    mine.filter(state=TriggerWaitState.WAITING).update(state=TriggerWaitState.EXPIRED)
    if not mine.filter(state=TriggerWaitState.RESUMED).exists():
        return None
    return ToolCall.objects.values_list("result", flat=True).get(pk=call.pk)


def resume_one_of(agent: Agent, caller: str, context: dict[str, Any], *, caused_by: str) -> str | None:
    """The run of `agent` that goes on with a call of the agent `caller`; None: no run waits for it."""
    waiting = _open(agent.workspace_id, AGENT_TRIGGER).filter(run__agent=agent)
    return _first(waiting.filter(source_agent__in=["", caller]), lambda _: True, context, caused_by)


def resume_all(workspace_id: int, fits: Fits, context: Mapping[str, Any], *, caused_by: str) -> dict[int, str]:
    """{agent: its run that goes on with this webhook}, one of each agent that has runs waiting for it."""
    waiting = list(_open(workspace_id, WEBHOOK).select_related("run"))
    resumed: dict[int, str] = {}
    for wait in waiting:
        agent_id = wait.run.agent_id
        if agent_id not in resumed and fits(wait) and _take(wait, context, caused_by):
            resumed[agent_id] = wait.run_id
    return resumed


def fitting(workspace_id: int, fits: Fits) -> list[Run]:
    """Those that `resume_all` would let go on, with their agents. Changes nothing."""
    first: dict[int, Run] = {}
    for wait in _open(workspace_id, WEBHOOK).select_related("run__agent"):
        if wait.run.agent_id not in first and fits(wait):
            first[wait.run.agent_id] = wait.run
    return list(first.values())


def resumed_by(caused_by: str) -> list[str]:
    """The runs that went on with the event."""
    return list(TriggerWait.objects.filter(caused_by=caused_by).order_by("pk").values_list("run_id", flat=True))


def wake(run_id: str) -> None:
    """Let a run go on whose event has come."""
    if TriggerWait.objects.filter(run_id=run_id, call__state="started", state=TriggerWaitState.RESUMED).exists():
        lifecycle.wake(run_id, WaitReason.TRIGGER)


def sweep() -> None:
    """Wake those whose bell was lost."""
    parked = Run.objects.filter(status=Status.WAITING, wait_reason=WaitReason.TRIGGER, wake_at__isnull=False)
    come = parked.filter(trigger_waits__state=TriggerWaitState.RESUMED, trigger_waits__call__state="started")
    for run_id in come.order_by("wake_at").values_list("pk", flat=True)[:100]:
        wake(run_id)


def _open(workspace_id: int, kind: str) -> QuerySet[TriggerWait]:
    """Those that wait, the longest first."""
    waiting = Q(state=TriggerWaitState.WAITING, expires_at__gt=clock.now())
    return TriggerWait.objects.filter(waiting, workspace_id=workspace_id, kind=kind).order_by("pk")


def _first(waiting: QuerySet[TriggerWait], fits: Fits, context: Mapping[str, Any], caused_by: str) -> str | None:
    return next((wait.run_id for wait in waiting if fits(wait) and _take(wait, context, caused_by)), None)


def _take(wait: TriggerWait, context: Mapping[str, Any], caused_by: str) -> bool:
    """The event is this run's. False: another was first, or the run waits no longer."""
    mine = TriggerWait.objects.filter(pk=wait.pk, state=TriggerWaitState.WAITING)
    if not mine.update(state=TriggerWaitState.RESUMED, caused_by=caused_by):
        return False
    ToolCall.objects.filter(pk=wait.call_id).update(result=storable.text(json.dumps(context, ensure_ascii=False)))
    bells.ring_around(wait.run_id)
    return True
