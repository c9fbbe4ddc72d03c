"""What agents are told of events whose senders nobody has described: what is named as they know it, at the top of the
body or in its `data`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from webhooks.providers.base import Event, Request
from webhooks.providers.payloads import (
    EVENT_LENGTH,
    MOST_NAMES,
    Keys,
    at,
    cut,
    hops,
    long_text,
    names_its_event,
    number,
    text,
    timestamp,
    told,
)
from webhooks.providers.payloads import members as members_of


def event_of(source: str, event: str, payload: Any, request: Request, *, external_id: str) -> Event:
    """An event of `source`: its name cut to what is stored, its context what could be found."""
    event = event[:EVENT_LENGTH]
    return Event(
        event=event,
        context={"source": source, "event": event, **told(payload, _keys(request.received_at))},
        facts={"body": payload},
        external_id=external_id,
        unique=names_its_event(payload),
        hops=hops(payload),
    )


def _keys(received_at: datetime) -> Keys:
    return {
        "action": text(*_both("action")),
        "repo": text(*_both("repo", "repository", "repository.full_name", "project")),
        "sender": text(*_both("sender", "sender.login", "user", "user.name", "actor", "actor.name"), default="unknown"),
        "timestamp": lambda _payload: timestamp(received_at),
        "number": number(*_both("number")),
        "title": _title,
        "body": long_text(*_both("body", "message", "text", "description")),
        "url": text(*_both("url", "html_url", "link")),
        "author": text(*_both("author", "author.name")),
        "assignee": text(*_both("assignee")),
        "labels": _labels,
        "branch": text(*_both("branch")),
        "conclusion": text(*_both("conclusion")),
        "comment": long_text(*_both("comment")),
        "state": text(*_both("state", "status")),
        "environment": text(*_both("environment")),
    }


def _both(*names: str) -> list[str]:
    return [*names, *(f"data.{name}" for name in names)]


_whole_title = text(*_both("title", "subject", "name"))


def _title(payload: Any) -> str | None:
    found = _whole_title(payload)
    return cut(found) if found else None


def _labels(payload: Any) -> list[str] | None:
    """Names, or objects that have one; None where there is no list."""
    members = members_of(payload, "labels") or members_of(payload, "data.labels")
    named = (text("name")(label if isinstance(label, dict) else {"name": label}) for label in members[:MOST_NAMES])
    found = [name for name in named if name is not None]
    return found if found or isinstance(at(payload, "labels"), list) else None
