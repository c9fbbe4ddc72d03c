"""What callers may ask of runs: submit, cancel, respond, delete. REST, admin, webhooks and cron all come here."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from django.db import IntegrityError, transaction
from django.db.models import Q

from agents import clock, journal, storable
from agents.models import FLEET_PAUSED, Agent, Priority, Workspace
from runs import bells, breaker, events, intake, lifecycle, ticks, tools
from runs.intake import AlreadyReplayed, Coalesced, QueueFull
from runs.lifecycle import Cause
from runs.lineage import Runaway
from runs.models import Attempt, CallState, DeadLetter, Run, Status, ToolCall, WaitReason

__all__ = ["AlreadyReplayed", "Coalesced", "QueueFull"]  # what callers catch, under this module's name


class NotWaiting(Exception):
    """The run waits for no answer."""


class AlreadyOver(Exception):
    """The run has ended; its status is final."""


class StillActive(Exception):
    """The run has not ended, and deleting it was not forced."""


class AgentRefuses(Exception):
    """The agent takes no new work; the message says why, and `code` is what the API calls it."""

    code = "AGENT_UNAVAILABLE"


class Stopped(AgentRefuses):
    """Too long a chain of runs, or too many of them, led to this."""

    def __init__(self, runaway: Runaway) -> None:
        super().__init__(str(runaway))
        self.code = runaway.code


class FleetPaused(AgentRefuses):
    """No agent takes new work."""

    code = "FLEET_PAUSED"


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

    Raises AgentRefuses, KeyReused, QueueFull, Coalesced.
    """
    check_takes_work(agent)
    if idempotency_key and (known := Run.objects.filter(agent=agent, idempotency_key=idempotency_key).first()):
        return same_request(known, cause, input, fields), False
    try:
        with transaction.atomic():
            run = intake.take(
                agent,
                Cause(cause.trigger, storable.json(cause.context or {}), cause.caused_by),
                input=storable.text(input),
                tags=storable.json(tags or []),
                priority=agent.priority if priority is None else priority,
                idempotency_key=idempotency_key,
                request_digest=digest(cause, input, fields) if idempotency_key else "",
                **fields,
            )
    except Runaway as runaway:
        raise Stopped(runaway) from runaway
    except IntegrityError:
        if not idempotency_key:
            raise
        known = Run.objects.get(agent=agent, idempotency_key=idempotency_key)
        return same_request(known, cause, input, fields), False
    return run, True


def check_takes_work(agent: Agent) -> None:
    """Raises AgentRefuses."""
    if agent.workspace.paused_at is not None:
        raise FleetPaused(FLEET_PAUSED)
    if agent.refusal:
        raise AgentRefuses(agent.refusal)


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
        took = max(0, round((clock.now() - (call.started_at or clock.now())).total_seconds() * 1000))
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
        if run.scheduled_for:
            journal.note(run.agent, "tick.deleted", {"run": run.pk}, tick=run.scheduled_for)
        run.delete()
    return True


def pause(agent: Agent) -> None:
    """Start nothing new for this agent, whatever asks; kept over restarts."""
    with transaction.atomic():
        Agent.objects.filter(pk=agent.pk, paused_at=None).update(paused_at=clock.now())
        ticks.mirror(Agent.objects.get(pk=agent.pk))


def resume(agent: Agent) -> None:
    """Take work again, from now: ticks that passed are not made up for; what is in line goes on."""
    with transaction.atomic():
        if Agent.objects.filter(pk=agent.pk, paused_at__isnull=False).update(paused_at=None):
            ticks.count_from_now(Q(agent=agent.pk))
        ticks.mirror(Agent.objects.get(pk=agent.pk))
        bells.ring_agent(agent.pk)


def pause_fleet(workspace: Workspace) -> None:
    """Start nothing new for any agent, whatever asks; kept over restarts. What has begun goes on."""
    with transaction.atomic():
        Workspace.objects.filter(pk=workspace.pk, paused_at=None).update(paused_at=clock.now())
        mirror_all(workspace)


def resume_fleet(workspace: Workspace) -> None:
    """As `resume`, for all agents but those that are paused themselves."""
    with transaction.atomic():
        if Workspace.objects.filter(pk=workspace.pk, paused_at__isnull=False).update(paused_at=None):
            ticks.count_from_now(Q(agent__workspace=workspace.pk))
        mirror_all(workspace)
        in_line = Run.objects.filter(workspace=workspace, status=Status.PENDING).order_by()
        for agent_id in in_line.values_list("agent", flat=True).distinct():
            bells.ring_agent(agent_id)


def mirror_all(workspace: Workspace) -> None:
    scheduled = Agent.objects.filter(workspace=workspace, active=True, schedules__isnull=False).distinct()
    for agent in scheduled.select_related("workspace"):
        ticks.mirror(agent)


def replay(letter: DeadLetter) -> Run:
    """Start what the event would have started. Raises AgentRefuses, AlreadyReplayed, QueueFull, Coalesced."""
    check_takes_work(letter.agent)
    try:
        return intake.replay(letter)
    except Runaway as runaway:
        raise Stopped(runaway) from runaway


def reset_breaker(agent: Agent) -> None:
    """Forget the agent's failures and let its line move."""
    with transaction.atomic():
        breaker.mend(Agent.objects.get(pk=agent.pk), "reset by hand")


def tools_of(run: Run) -> list[str]:
    """The names of the tools the run's model has."""
    spec = run.version.shown() if run.version else run.agent.shown_spec
    return [tool.name for tool in tools.of(spec)]
