"""Requests made by hand, to try an agent: the body's fields are what the agent is told (spec/action-llama.md 2.3).

Nobody signs them: a source of this type takes them only where it says `allow_unsigned`.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from webhooks.providers.base import Event, Provider, Request, Secrets
from webhooks.providers.payloads import (
    EVENT_LENGTH,
    MOST_NAMES,
    Keys,
    external_id,
    long_text,
    members,
    number,
    payload_of,
    text,
    timestamp,
    told,
)


class Test(Provider):
    __test__ = False  # for pytest: it is not one
    secret_credential = ""

    def signed_by(self, request: Request, secrets: Secrets) -> str | None:
        """See Provider."""
        del request, secrets
        return None

    def parse(self, request: Request) -> Event:
        """See Provider."""
        payload = payload_of(request)
        event = (text("event", default="test")(payload) or "")[:EVENT_LENGTH]
        context = told(payload, {**_keys(request.received_at), "event": lambda _payload: event})
        return Event(event=event, context=context, external_id=external_id(request, "idempotency-key"))


def _keys(received_at: datetime) -> Keys:
    return {
        "source": text("source", default="test"),
        "event": text("event", default="test"),
        "action": text("action"),
        "repo": text("repo", default=""),
        "sender": text("sender", default="test"),
        "timestamp": text("timestamp", default=timestamp(received_at)),
        "number": number("number"),
        "title": long_text("title"),
        "body": long_text("body"),
        "url": text("url"),
        "author": text("author"),
        "assignee": text("assignee"),
        "labels": _labels,
        "branch": text("branch"),
        "conclusion": text("conclusion"),
        "comment": long_text("comment"),
    }


def _labels(payload: Any) -> list[str] | None:
    named = [text("name")({"name": label}) for label in members(payload, "labels")[:MOST_NAMES]]
    return [name for name in named if name is not None] or None
