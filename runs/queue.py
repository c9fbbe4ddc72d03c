"""What callers may ask of runs: submit, cancel, respond, delete. REST, admin, webhooks and cron all come here."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Any

from django.db import IntegrityError, transaction

from agents import clock, schedule, storable
from agents.models import Agent, Priority
from runs import bells, events, lifecycle, ticks, tools
from runs.lifecycle import Cause
from runs.models import Attempt, CallState, Run, Status, ToolCall, TriggerKind, WaitReason


class NotWaiting(Exception):
    """The run waits for no answer."""


class AlreadyOver(Exception):
    """The run has ended; its status is final."""


class StillActive(Exception):
    """The run has not ended, and deleting it was not forced."""


class AgentRefuses(Exception):
    """The agent takes no new work; the message says why."""


class KeyReused(Exception):
    """The idempotency key came before, with another request."""


def submit(
    agent: Agent,
    cause: Cause,
    *,
    input: str = "",  # noqa: A002 - the word of the contract
    tags: list[str] | None = None,
    priority: Priority | None = None,
    idempotency_key: str = "",
    **fields: Any,
) -> tuple[Run, bool]:
    """A run in the agent's line, and whether it is new: a key used before gives the first one's run.

    Raises AgentRefuses, KeyReused.
    """
    if agent.refusal:
        raise AgentRefuses(agent.refusal)
    if idempotency_key and (known := Run.objects.filter(agent=agent, idempotency_key=idempotency_key).first()):
        return same_request(known, cause, input, fields), False
    try:
        with transaction.atomic():
            run = lifecycle.create(
                agent,
                Cause(cause.trigger, storable.json(cause.context or {}), cause.caused_by),
                input=storable.text(input),
                tags=storable.json(tags or []),
                priority=agent.priority if priority is None else priority,
                idempotency_key=idempotency_key,
                request_digest=digest(cause, input, fields) if idempotency_key else "",
                **fields,
            )
    except IntegrityError:
        if not idempotency_key:
            raise
        known = Run.objects.get(agent=agent, idempotency_key=idempotency_key)
        return same_request(known, cause, input, fields), False
    return run, True


def same_request(known: Run, cause: Cause, text: str, fields: dict[str, Any]) -> Run:
    """The run the key stands for. Raises KeyReused if this is another request."""
    if known.request_digest != digest(cause, text, fields):
        raise KeyReused(known.pk)
    return known


def digest(cause: Cause, text: str, fields: dict[str, Any]) -> str:
    asked = json.dumps([cause.trigger, text, fields], sort_keys=True, default=str)
    return hashlib.sha256(asked.encode()).hexdigest()


def cancel(run: Run) -> None:
    """Stop it: at once where nobody works on it, else as soon as whoever does has heard. Raises AlreadyOver."""
    if lifecycle.cancel_idle(run.pk) or lifecycle.request_cancel(run.pk):
        return
    if Run.objects.get(pk=run.pk).terminal:
        raise AlreadyOver(run.pk)


def respond(run: Run, message: str) -> None:
    """Answer the question a waiting run has asked. Raises NotWaiting."""
    message = storable.text(message)
    with transaction.atomic():
        call = ToolCall.objects.filter(attempt__run=run, name="ask", state=CallState.STARTED).order_by("-pk").first()
        if call is None:
            raise NotWaiting(run.pk)
        answered = events.New("respond", {"callId": call.call_id, "message": message})
        took = round((clock.now() - (call.started_at or clock.now())).total_seconds() * 1000)
        ended = events.New(
            "tool.end",
            {
                "toolName": call.name,
                "callId": call.call_id,
                "durationMs": took,
                "success": True,
                "outputPreview": message[:200],
            },
        )
        if not lifecycle.wake(run.pk, WaitReason.INPUT, also=[answered, ended]):
            raise NotWaiting(run.pk)
        done = ToolCall.objects.filter(pk=call.pk, state=CallState.STARTED)
        done.update(state=CallState.DONE, result=message, ended_at=clock.now())


def delete(run: Run, *, force: bool) -> None:
    """Take the run out of sight now and out of the database once its sandbox is gone. Raises StillActive."""
    if not force and not Run.objects.get(pk=run.pk).terminal:
        raise StillActive(run.pk)
    Run.objects.filter(pk=run.pk).update(delete_requested_at=clock.now())
    try:
        cancel(run)
    except AlreadyOver:
        bells.ring_run(run.pk, run.host_id)
    purge(run.pk)


def purge(run_id: str) -> bool:
    """Delete a run that is to go, if it is over and nothing of it stands on any engine."""
    with transaction.atomic():
        run = Run.objects.filter(pk=run_id, delete_requested_at__isnull=False).first()
        if run is None or not run.terminal:
            return False
        if Attempt.objects.filter(run=run, has_workspace=True).exists():
            return False
        run.delete()
    return True


def fire(agent: Agent, now: datetime) -> Run | None:
    """Start the agent's scheduled run if a tick is due; the latest, if several were missed.

    Beat's bell and every sweep ask this; the condition on `schedule_fired_at` and the unique
    (agent, scheduled time) let one of them through.
    """
    since = agent.schedule_fired_at
    if since is None:
        Agent.objects.filter(pk=agent.pk, schedule_fired_at=None).update(schedule_fired_at=now)
        return None
    tick = schedule.latest_due(agent.schedule, agent.timezone, since=since, now=now)
    if tick is None:
        return None
    with transaction.atomic():
        mine = Agent.objects.filter(pk=agent.pk, schedule_fired_at=since).update(schedule_fired_at=tick)
        if not mine or agent.refusal or has_tick_in_line(agent) or has_run(agent, tick):
            return None
        cause = Cause(TriggerKind.SCHEDULE, {"scheduledFor": events.isoformat(tick)})
        return lifecycle.create(agent, cause, scheduled_for=tick)


def has_run(agent: Agent, tick: datetime) -> bool:
    """It was fired before, and the clock or the database is back at an earlier time."""
    return Run.objects.filter(agent=agent, scheduled_for=tick).exists()


def has_tick_in_line(agent: Agent) -> bool:
    """A tick that has not begun will see whatever this one would: one in line is enough."""
    line = Run.objects.filter(agent=agent, status=Status.PENDING, trigger=TriggerKind.SCHEDULE)
    return line.exists()


def pause(agent: Agent) -> None:
    """Start nothing new for this agent, whatever asks; kept over restarts."""
    with transaction.atomic():
        Agent.objects.filter(pk=agent.pk, paused_at=None).update(paused_at=clock.now())
        ticks.mirror(Agent.objects.get(pk=agent.pk))


def resume(agent: Agent) -> None:
    """Take work again, from now: ticks that passed are not made up for; what is in line goes on."""
    with transaction.atomic():
        Agent.objects.filter(pk=agent.pk).update(paused_at=None, schedule_fired_at=clock.now())
        ticks.mirror(Agent.objects.get(pk=agent.pk))
        bells.ring_agent(agent.pk)


def tools_of(run: Run) -> list[str]:
    """The names of the tools the run's model has."""
    spec = run.version.read() if run.version else run.agent.spec
    return [tool.name for tool in tools.offered(spec.tools)]
