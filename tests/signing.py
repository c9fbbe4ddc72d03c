"""Requests of each provider's sender, and how they sign them, written down once more than in the product."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from agents.spec import SignatureScheme
from webhooks.providers.base import Request

NOON = datetime(2026, 3, 19, 12, 0, 0, 123_987, tzinfo=UTC)
STRIPE = SignatureScheme(
    header="Stripe-Signature",
    separator=",",
    signature_key="v1",
    timestamp_key="t",
    signed="{timestamp}.{body}",
)
SECRET = "a-secret-of-some-length"
WHSEC = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BOT = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC_KEY = BOT.public_key().public_bytes_raw().hex()

Signer = Callable[[bytes, datetime], dict[str, str]]


def digest(secret: str, signed: bytes) -> hmac.HMAC:
    return hmac.new(secret.encode(), signed, hashlib.sha256)


def github(body: bytes, _at: datetime = NOON) -> dict[str, str]:
    return {"x-hub-signature-256": f"sha256={digest(SECRET, body).hexdigest()}"}


def plain(header: str) -> Signer:
    return lambda body, _at: {header: digest(SECRET, body).hexdigest()}


def slack(body: bytes, at: datetime = NOON) -> dict[str, str]:
    sent_at = str(int(at.timestamp()))
    signature = digest(SECRET, f"v0:{sent_at}:".encode() + body).hexdigest()
    return {"x-slack-request-timestamp": sent_at, "x-slack-signature": f"v0={signature}"}


def discord(body: bytes, at: datetime = NOON) -> dict[str, str]:
    sent_at = str(int(at.timestamp()))
    return {"x-signature-timestamp": sent_at, "x-signature-ed25519": BOT.sign(sent_at.encode() + body).hex()}


def twitter(body: bytes, _at: datetime = NOON) -> dict[str, str]:
    return {"x-twitter-webhooks-signature": "sha256=" + base64.b64encode(digest(SECRET, body).digest()).decode()}


def stripe(body: bytes, at: datetime = NOON) -> dict[str, str]:
    sent_at = str(int(at.timestamp()))
    signature = digest(SECRET, f"{sent_at}.".encode() + body).hexdigest()
    return {"stripe-signature": f"v0=older,t={sent_at},v1={'0' * 64},v1={signature}"}


def standard(body: bytes, at: datetime = NOON) -> dict[str, str]:
    named, sent_at = "msg_p5jXN8AQM9LWM0D4loKWxJek", str(int(at.timestamp()))
    key = base64.b64decode(WHSEC.removeprefix("whsec_"))
    signature = hmac.new(key, f"{named}.{sent_at}.".encode() + body, hashlib.sha256).digest()
    signatures = f"v1,{base64.b64encode(bytes(32)).decode()} v1,{base64.b64encode(signature).decode()}"
    return {"webhook-id": named, "webhook-timestamp": sent_at, "webhook-signature": signatures}


SIGNERS: dict[str, Signer] = {
    "github": github,
    "sentry": plain("sentry-hook-signature"),
    "linear": plain("linear-signature"),
    "mintlify": plain("x-mintlify-signature"),
    "slack": slack,
    "discord": discord,
    "twitter": twitter,
    "standardwebhooks": standard,
    "hmac": stripe,
}
TOKENS: dict[str, Signer] = {
    "gitlab": lambda _body, _at: {"x-gitlab-token": SECRET},
    "generic": lambda _body, _at: {"authorization": f"Bearer {SECRET}"},
}
TIMED = ("slack", "discord", "standardwebhooks", "hmac")
SECRETS = {"standardwebhooks": WHSEC, "discord": PUBLIC_KEY}


def secret_of(provider: str) -> str:
    return SECRETS.get(provider, SECRET)


def asked(provider: str, headers: dict[str, str], body: bytes, **changes: Any) -> Request:
    """A request that arrived at noon; one of provider hmac is Stripe's."""
    scheme = STRIPE if provider == "hmac" else None
    return replace(Request(headers=headers, body=body, received_at=NOON, scheme=scheme), **changes)
