"""X, formerly Twitter: the Account Activity API, with its challenges (spec/action-llama.md 2.6)."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from agents import storable
from webhooks.providers.base import Event, Handshake, Ignored, Provider, Request, Secrets
from webhooks.providers.payloads import (
    EXTERNAL_ID_LENGTH,
    Keys,
    at,
    identifier,
    long_text,
    payload_of,
    text,
    timestamp,
    told,
)
from webhooks.providers.signatures import from_base64, live, mac, same, signer

PREFIX = "sha256="
LONGEST_TOKEN = 1000

_event_name = re.compile(r"[a-z_]{1,100}")


class Twitter(Provider):
    secret_credential = "x_twitter_api"  # noqa: S105 - the type of a credential, not a secret
    secret_fields = ("consumer_secret", "api_secret")  # its two names

    def signed_by(self, request: Request, secrets: Secrets) -> str | None:
        """See Provider."""
        header = request.headers.get("x-twitter-webhooks-signature", "")
        claimed = from_base64(header.removeprefix(PREFIX)) if header.startswith(PREFIX) else None
        return signer(secrets, lambda secret: same(claimed, mac(secret, request.body)))

    def parse(self, request: Request) -> Event | Ignored:
        """See Provider. The event is the first list of the payload; agents are told of its first item."""
        payload = payload_of(request)
        event = _event_of(payload)
        if event is None:
            return Ignored("no list of events")
        item = at(payload, f"{event}.0")
        about = {"payload": payload, "event": event, "item": item, "said": _said(item)}
        context = {"source": "twitter", "event": event, **told(about, _keys(request.received_at))}
        delivery = (identifier("said.id_str", "item.id", "item.id_str")(about) or "")[:EXTERNAL_ID_LENGTH]
        return Event(event=event, context=context, external_id=delivery, unique=True)

    def greet(self, query: Mapping[str, str], secrets: Secrets) -> Handshake | None:
        """The challenge-response check, signed with the first secret there is."""
        token = query.get("crc_token", "")[:LONGEST_TOKEN]
        secret = next((secret for _, secret in live(secrets)), None)
        if not token or secret is None:
            return None
        digest = mac(secret, token.encode(errors="surrogatepass"))
        return Handshake({"response_token": PREFIX + base64.b64encode(digest).decode()})


def _event_of(payload: Any) -> str | None:
    lists = (key for key, value in payload.items() if isinstance(value, list)) if isinstance(payload, dict) else ()
    return next((key for key in lists if _event_name.fullmatch(key)), None)


def _said(item: Any) -> Any:
    """The post that an item is or is about."""
    return at(item, "favorited_status") or item


def _keys(received_at: datetime) -> Keys:
    return {
        "action": lambda about: str(about["event"]).removesuffix("_events").rpartition("_")[2] or None,
        "repo": identifier("payload.for_user_id"),
        "sender": text("item.user.screen_name", "item.source.screen_name", default="unknown"),
        "timestamp": lambda about: _happened_at(about) or timestamp(received_at),
        "title": _short,
        "body": long_text("said.extended_tweet.full_text", "said.text", "item.message_create.message_data.text"),
        "url": _url,
        "author": text("said.user.screen_name"),
    }


def _short(about: Any) -> str | None:
    whole = text("said.text", "item.type")(about)
    return storable.text(whole[:100]) if whole else None


def _url(about: Any) -> str | None:
    name, post = text("said.user.screen_name")(about), text("said.id_str")(about)
    return f"https://x.com/{name}/status/{post}" if name and post else None


def _happened_at(about: Any) -> str | None:
    written = identifier("item.timestamp_ms", "item.created_timestamp")(about) or ""
    # 13 digits are milliseconds until the year 2286
    moment = datetime.fromtimestamp(int(written) / 1000, UTC) if re.fullmatch("[0-9]{13}", written) else None
    return timestamp(moment) if moment else None
