"""Linear (spec/action-llama.md 2.2 and 2.3). What Linear calls an Issue and a Comment has GitHub's names here."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from webhooks.providers.base import Event, Ignored, Provider, Request, Secrets
from webhooks.providers.payloads import (
    Keys,
    at,
    external_id,
    long_text,
    names,
    number,
    payload_of,
    text,
    timestamp,
    told,
)
from webhooks.providers.signatures import from_hex, mac, same, signer

_type = re.compile(r"[A-Za-z0-9_.-]{1,100}")
_organization = text("organizationId", "data.team.organization.id")


class Linear(Provider):
    secret_credential = "linear_webhook_secret"  # noqa: S105 - the type of a credential, not a secret

    def signed_by(self, request: Request, secrets: Secrets) -> str | None:
        """See Provider. The time in the body is no window: Linear tries again for hours."""
        claimed = from_hex(request.headers.get("linear-signature", ""))
        return signer(secrets, lambda secret: same(claimed, mac(secret, request.body)))

    def parse(self, request: Request) -> Event | Ignored:
        """See Provider. Ignores what lacks an action, a type, data or an organization."""
        payload, delivery = payload_of(request), external_id(request, "linear-delivery")
        if missing := _missing(payload):
            return Ignored(f"no {' and no '.join(missing)}", delivery)
        named = payload["type"]
        event = EVENTS.get(named, named.lower())
        keys = {**_base(request.received_at), **KEYS.get(named, _other(named))}
        context = {"source": "linear", "event": event, **told(payload, keys)}
        return Event(event=event, context=context, external_id=delivery, unique=True)


def _missing(payload: Any) -> list[str]:
    there = {
        "action": text("action")(payload),
        "type": _type.fullmatch(text("type")(payload) or ""),
        "data": isinstance(at(payload, "data"), dict),
        "organization": _organization(payload),
    }
    if at(payload, "type") == "Comment":
        there["issue"] = isinstance(at(payload, "data.issue"), dict)
    return [name for name, found in there.items() if not found]


def _base(received_at: datetime) -> Keys:
    return {
        "action": text("action"),
        "repo": _organization,
        # the first two are those of the spec; `actor` is what Linear sends
        "sender": text("createdBy.email", "updatedBy.email", "actor.email", "actor.name", default="unknown"),
        "timestamp": lambda _payload: timestamp(received_at),
    }


def _other(named: str) -> Keys:
    return {"title": text("data.title", "action", default=named), "url": text("data.url", "url")}


EVENTS = {"Issue": "issues", "Comment": "issue_comment"}
KEYS: dict[str, Keys] = {
    "Issue": {
        "number": number("data.number"),
        "title": text("data.title"),
        "body": long_text("data.description"),
        "url": text("data.url", "url"),
        "author": text("data.creator.email"),
        "assignee": text("data.assignee.email"),
        "labels": names("data.labels"),
        "state": text("data.state.name"),
    },
    "Comment": {
        "number": number("data.issue.number"),
        "title": text("data.issue.title"),
        "url": text("data.url", "data.issue.url", "url"),
        "author": text("data.issue.creator.email"),
        "comment": long_text("data.body"),
        "labels": names("data.issue.labels"),
        "commentAuthor": text("data.user.email", "data.user.name"),
    },
}
