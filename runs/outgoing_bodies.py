"""What a message about a run says: to programs, and to people in a chat. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from django.conf import settings

from agents import clock, storable
from agents.redaction import Redactor
from runs import events
from runs.models import Outgoing, OutgoingFormat, Run, TriggerKind

HOPS = "agentfleet-hops"  # in the body and as a header: how many runs are before what it sets off
LONGEST_TEXT = 4_000  # characters of an output, a question or an error
LONGEST_IN_CHAT = 500
PAGE = "/admin/runs/run/{}/change/"  # written out: a worker does not load the pages


def about(run: Run, outgoing: Outgoing, *, redactor: Redactor) -> dict[str, Any]:
    """The body about the run's present state, with no secret the redactor knows."""
    body = in_chat(run, redactor) if outgoing.format == OutgoingFormat.SLACK else standard(run, redactor)
    cleaned: dict[str, Any] = storable.json(redactor.json(body))
    return cleaned


def standard(run: Run, redactor: Redactor) -> dict[str, Any]:
    return {
        "type": type_of(run),
        "timestamp": events.isoformat(clock.now()),
        HOPS: run.hops + 1,
        "data": {
            "id": run.pk,
            "agent": run.agent.name,
            "status": run.status,
            "wait_reason": run.wait_reason,
            "question": bounded(run.question, redactor),
            "error": error_of(run, redactor),
            "output": None if run.output is None else bounded(run.output, redactor),
            "trigger": run.trigger,
            "caused_by": run.caused_by,
            "hops": run.hops,
            "url": url_of(run),
            "cost_usd": f"{run.cost:.6f}",
            "turns": run.turns,
            "created_at": written(run.created_at),
            "started_at": written(run.started_at),
            "finished_at": written(run.finished_at),
        },
    }


def in_chat(run: Run, redactor: Redactor) -> dict[str, str]:
    """One line as Slack and those that do as it does take it, with one link."""
    state = f"waits ({run.wait_reason})" if run.wait_reason else run.status
    told = redactor.text(run.question or str((run.error or {}).get("message", "")))
    said = f": {shortened(told)}" if told else ""
    line = escaped(f"agent {run.agent.name}: {state}{said} (cause: {cause_of(run)})")
    return {"text": f"{line} <{url_of(run)}|{run.pk}>"}


def of_test(outgoing: Outgoing) -> dict[str, Any]:
    """Of a message that only shows that messages arrive."""
    said = f"agentfleet: a test of the outgoing webhook {outgoing.name}"
    if outgoing.format == OutgoingFormat.SLACK:
        return {"text": escaped(said)}
    return {"type": "test", "timestamp": events.isoformat(clock.now()), "data": {"message": said}}


def type_of(run: Run) -> str:
    return f"run.{run.status}"


def url_of(run: Run) -> str:
    return f"{settings.PUBLIC_URL.rstrip('/')}{PAGE.format(run.pk)}"


def cause_of(run: Run) -> str:
    """Why the run exists, in words."""
    context = run.trigger_context
    match run.trigger:
        case TriggerKind.SCHEDULE:
            return f"schedule, due {written(run.scheduled_for)}" if run.scheduled_for else "schedule"
        case TriggerKind.WEBHOOK:
            told = [shortened(str(context[key])) for key in ("source", "event", "action") if context.get(key)]
            return " ".join(["delivery", *told])
        case TriggerKind.CALL:
            return f"called by {shortened(str(context.get('caller', '?')))}"
        case TriggerKind.RERUN:
            return f"rerun of {run.caused_by}"
        case TriggerKind.MANUAL:
            return "started by hand"
        case TriggerKind.API:
            return "asked for over REST"
        case _:
            return run.trigger


def error_of(run: Run, redactor: Redactor) -> dict[str, str] | None:
    if run.error is None:
        return None
    return {"code": run.error.get("code", ""), "message": bounded(str(run.error.get("message", "")), redactor)}


def bounded(text: str, redactor: Redactor) -> str:
    """Cleaned first: a cut could leave the better part of a secret that nobody would know again."""
    return redactor.text(text)[:LONGEST_TEXT]


def shortened(text: str) -> str:
    """On one line."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_IN_CHAT else f"{line[: LONGEST_IN_CHAT - 1]}…"


def escaped(text: str) -> str:
    """As Slack wants the three characters that mean something to it: no text calls a channel or makes a link."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def written(at: datetime | None) -> str | None:
    return events.isoformat(at) if at else None
