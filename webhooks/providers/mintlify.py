"""Mintlify: the builds of documentation (spec/action-llama.md 2.2 and 2.3)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from webhooks.providers.base import Event, Ignored, Provider, Request, Secrets
from webhooks.providers.payloads import (
    EVENT_LENGTH,
    Keys,
    cut,
    external_id,
    long_text,
    names_its_event,
    payload_of,
    text,
    timestamp,
    told,
)
from webhooks.providers.signatures import from_hex, mac, same, signer

CONCLUSIONS = {"failed": "failure", "failure": "failure", "succeeded": "success", "success": "success"}

_action = text("action", "status")


class Mintlify(Provider):
    secret_credential = "mintlify_webhook_secret"  # noqa: S105 - the type of a credential, not a secret

    def signed_by(self, request: Request, secrets: Secrets) -> str | None:
        """See Provider."""
        claimed = from_hex(request.headers.get("x-mintlify-signature") or request.headers.get("mintlify-signature", ""))
        return signer(secrets, lambda secret: same(claimed, mac(secret, request.body)))

    def parse(self, request: Request) -> Event | Ignored:
        """See Provider. Ignores what has neither an action nor a status."""
        payload, delivery = payload_of(request), external_id(request, "x-mintlify-delivery")
        action = _action(payload)
        if action is None:
            return Ignored("no action and no status", delivery)
        event = (text("event", default="build")(payload) or "")[:EVENT_LENGTH]
        context = {"source": "mintlify", "event": event, **told(payload, _keys(action, request.received_at))}
        return Event(event=event, context=context, external_id=delivery, unique=names_its_event(payload))


def _keys(action: str, received_at: datetime) -> Keys:
    return {
        "action": _action,
        "repo": text("project", "organization", default="unknown"),
        "sender": text("user.email", "user.name", default="mintlify"),
        "timestamp": text("timestamp", default=timestamp(received_at)),
        "title": text("title", default=f"Build {action}"),
        "body": lambda payload: _body(payload, action),
        "url": text("url", "build_url", "logs_url"),
        "branch": text("branch", "git.branch", default="main"),
        "conclusion": lambda _payload: CONCLUSIONS.get(action),
    }


def _body(payload: Any, action: str) -> str | None:
    error = text("error")(payload)
    if error and CONCLUSIONS.get(action) == "failure":
        return cut(f"Build failed: {error}")
    return long_text("message", "error", "description")(payload)
