"""Senders that follow standardwebhooks.com, under its headers' names or those of Svix.

Its own library would bring httpx, attrs and python-dateutil for what is one HMAC.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator

from webhooks.providers import anybody
from webhooks.providers.base import Event, Provider, Request, Secrets
from webhooks.providers.payloads import external_id, payload_of, text
from webhooks.providers.signatures import from_base64, is_fresh, is_of, mac, same, signer

PREFIXES = ("webhook", "svix")
SECRET, PUBLIC_KEY = "whsec_", "whpk_"
MOST_SIGNATURES = 10  # of one header: more are somebody making us work


class StandardWebhooks(Provider):
    secret_credential = "standard_webhook_secret"  # noqa: S105 - the type of a credential, not a secret

    def signed_by(self, request: Request, secrets: Secrets) -> str | None:
        """See Provider. A signature is good for five minutes. Secrets are `whsec_…`, or public keys, `whpk_…`."""
        headers = request.headers
        prefix = next((prefix for prefix in PREFIXES if f"{prefix}-signature" in headers), PREFIXES[0])
        named, sent_at = headers.get(f"{prefix}-id", ""), headers.get(f"{prefix}-timestamp", "")
        if not named or not is_fresh(sent_at, request.received_at):
            return None
        signed = f"{named}.{sent_at}.".encode(errors="surrogatepass") + request.body
        claimed = list(_signatures(headers.get(f"{prefix}-signature", "")))
        return signer(secrets, lambda secret: any(_is_by(secret, version, one, signed) for version, one in claimed))

    def parse(self, request: Request) -> Event:
        """See Provider. The event is the body's `type`, else `event`."""
        payload = payload_of(request)
        event = text("type", default="event")(payload) or ""
        named = external_id(request, *(f"{prefix}-id" for prefix in PREFIXES))
        return anybody.event_of("standardwebhooks", event, payload, request, external_id=named)


def _signatures(header: str) -> Iterator[tuple[str, bytes]]:
    for written in header.split(" ")[:MOST_SIGNATURES]:
        version, _, signature = written.partition(",")
        if (decoded := from_base64(signature)) is not None:
            yield version, decoded


def _is_by(secret: str, version: str, claimed: bytes, signed: bytes) -> bool:
    if version == "v1a" and secret.startswith(PUBLIC_KEY):
        return is_of(_key(secret.removeprefix(PUBLIC_KEY)), claimed, signed)
    if version == "v1" and not secret.startswith(PUBLIC_KEY):
        key = _key(secret.removeprefix(SECRET))
        return bool(key) and same(claimed, mac(key, signed))
    return False


def _key(written: str) -> bytes:
    """Empty where it is no base64; padding may be left out."""
    try:
        return base64.b64decode(written.encode("ascii") + b"=" * (-len(written) % 4), validate=True)
    except (ValueError, binascii.Error):
        return b""
