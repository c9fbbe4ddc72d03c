"""Slack's Events API (spec/action-llama.md 2.6). Where an answer goes, `channel` and `thread`, is told as well."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from webhooks.providers.base import Event, Handshake, Ignored, Provider, Request, Secrets
from webhooks.providers.payloads import (
    EVENT_LENGTH,
    EXTERNAL_ID_LENGTH,
    Keys,
    at,
    long_text,
    payload_of,
    text,
    timestamp,
    told,
)
from webhooks.providers.signatures import from_hex, is_fresh, mac, same, signer

VERSION = "v0"


class Slack(Provider):
    secret_credential = "slack_signing_secret"  # noqa: S105 - the type of a credential, not a secret

    def signed_by(self, request: Request, secrets: Secrets) -> str | None:
        """See Provider. A signature is good for five minutes."""
        sent_at = request.headers.get("x-slack-request-timestamp", "")
        version, _, claimed = request.headers.get("x-slack-signature", "").partition("=")
        if version != VERSION or not is_fresh(sent_at, request.received_at):
            return None
        signed = f"{VERSION}:{sent_at}:".encode() + request.body
        return signer(secrets, lambda secret: same(from_hex(claimed), mac(secret, signed)))

    def parse(self, request: Request) -> Event | Ignored | Handshake:
        """See Provider. Ignores whatever is no event, such as a button that was pushed."""
        payload = payload_of(request)
        kind = at(payload, "type")
        if kind == "url_verification":
            return Handshake({"challenge": text("challenge", default="")(payload)})
        delivery = (text("event_id")(payload) or "")[:EXTERNAL_ID_LENGTH]
        event = (text("event.type")(payload) or "")[:EVENT_LENGTH]
        if kind != "event_callback" or not event:
            return Ignored("no event_callback with an event", delivery)
        keys = {**_base(request.received_at), **_keys(event)}
        context = {"source": "slack", "event": event, **told(payload, keys)}
        return Event(event=event, context=context, external_id=delivery, unique=bool(delivery))


def _base(received_at: datetime) -> Keys:
    return {
        "action": text("event.subtype"),
        "repo": text("team_id", default=""),
        "sender": text("event.user", "event.bot_id", "event.user.id", default="unknown"),
        "timestamp": lambda _payload: timestamp(received_at),
    }


def _keys(event: str) -> Keys:
    if event in {"message", "app_mention"}:
        own: Keys = {"body": long_text("event.text"), "comment": lambda payload: _place("channel", _channel(payload))}
    elif event in {"reaction_added", "reaction_removed"}:
        own = {"title": text("event.reaction"), "comment": _reacted_to}
    else:
        own = {"title": text("event.type"), "body": long_text("event.text")}
    return {
        **own,
        "channel": _channel,
        "thread": text("event.thread_ts", "event.ts", "event.item.ts"),
        "messageId": text("event.ts", "event.item.ts"),
    }


_channel = text("event.channel", "event.item.channel", "event.channel.id")


def _reacted_to(payload: Any) -> str | None:
    return _place(text("event.item.type", default="item")(payload), text("event.item.channel")(payload))


def _place(kind: str | None, channel: str | None) -> str | None:
    return f"{kind}:{channel}" if channel else None
