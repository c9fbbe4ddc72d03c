"""Discord's interactions: commands, buttons and forms of a bot (spec/action-llama.md 2.6)."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from webhooks.providers.base import Event, Handshake, Ignored, Provider, Request, Secrets
from webhooks.providers.payloads import (
    EXTERNAL_ID_LENGTH,
    Keys,
    at,
    cut,
    identifier,
    members,
    payload_of,
    text,
    timestamp,
    told,
)
from webhooks.providers.signatures import from_hex, is_fresh, is_of, signer

PING = 1
EVENTS = {2: "application_command", 3: "message_component", 4: "autocomplete", 5: "modal_submit"}
# Discord tells its user that the bot failed unless the answer has one of these: "thinking" where there is something
# to answer to, no choices, or nothing at all.
REPLIES: dict[str, dict[str, Any]] = {
    "application_command": {"type": 5},
    "message_component": {"type": 6},
    "autocomplete": {"type": 8, "data": {"choices": []}},
    "modal_submit": {"type": 5},
}


class Discord(Provider):
    secret_credential = "discord_bot"  # noqa: S105 - the type of a credential, not a secret
    secret_fields = ("public_key",)

    def signed_by(self, request: Request, secrets: Secrets) -> str | None:
        """See Provider. A signature is good for five minutes."""
        sent_at = request.headers.get("x-signature-timestamp", "")
        claimed = from_hex(request.headers.get("x-signature-ed25519", "").lower())
        if claimed is None or not is_fresh(sent_at, request.received_at):
            return None
        signed = sent_at.encode() + request.body
        return signer(secrets, lambda key: is_of(from_hex(key.lower()) or b"", claimed, signed))

    def parse(self, request: Request) -> Event | Ignored | Handshake:
        """See Provider. Ignores kinds of interactions that are not known."""
        payload = payload_of(request)
        kind, interaction = at(payload, "type"), (identifier("id")(payload) or "")[:EXTERNAL_ID_LENGTH]
        if type(kind) is int and kind == PING:
            return Handshake({"type": PING})
        event = EVENTS.get(kind) if type(kind) is int else None
        if event is None:
            return Ignored("no interaction of a known type", interaction)
        context = {"source": "discord", "event": event, **told(payload, {**_base(request.received_at), **_keys(event)})}
        unique = bool(interaction)
        return Event(event=event, context=context, external_id=interaction, unique=unique, reply=REPLIES[event])


def _base(received_at: datetime) -> Keys:
    return {
        "action": _action,
        "repo": text("guild_id", default=""),
        "sender": text("member.user.username", "user.username", default="unknown"),
        "timestamp": lambda _payload: timestamp(received_at),
    }


def _keys(event: str) -> Keys:
    names_itself = event in {"application_command", "autocomplete"}
    return {
        "title": text("data.name") if names_itself else text("data.custom_id"),
        "body": _options if names_itself else _inputs,
        "branch": text("channel_id", "channel.id"),  # as the spec has it
    }


def _action(payload: Any) -> str | None:
    return text("data.name")(payload) or identifier("data.component_type", "data.custom_id")(payload)


def _options(payload: Any) -> str | None:
    """`name: value, …`; the options of a subcommand after its name."""
    written = ", ".join(_written(members(payload, "data.options")))
    return cut(written) or None


def _written(options: list[Any], depth: int = 2) -> Iterator[str]:
    for option in options:
        name, inner = text("name")(option), members(option, "options")
        if name is None:
            continue
        value = at(option, "value")
        yield name if value is None else f"{name}: {_plain(value)}"
        if depth and inner:
            yield from _written(inner, depth - 1)


def _plain(value: Any) -> str:
    return (text("value")({"value": value}) or "") if isinstance(value, str) else str(value)[:100]


def _inputs(payload: Any) -> str | None:
    """What was written into a form, or chosen from a menu."""
    fields = [field for row in members(payload, "data.components") for field in members(row, "components")]
    written = [f"{text('custom_id', default='input')(field)}: {_plain(at(field, 'value'))}" for field in fields]
    chosen = [_plain(value) for value in members(payload, "data.values")]
    return cut(", ".join([*written, *chosen])) or None
