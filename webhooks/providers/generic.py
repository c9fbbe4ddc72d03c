"""Anybody who can send JSON and a token: `Authorization: Bearer <token>` or `X-Webhook-Token: <token>`.

The token vouches for the whole request; nothing proves that the body is the one it was sent with. Use it over TLS.
"""

from __future__ import annotations

from dataclasses import replace

from webhooks.providers import anybody
from webhooks.providers.base import Event, Provider, Request, Secrets
from webhooks.providers.payloads import external_id, hops, payload_of, text
from webhooks.providers.signatures import same_token, signer


class Generic(Provider):
    secret_credential = "generic_webhook_token"  # noqa: S105 - the type of a credential, not a secret
    secret_fields = ("token",)

    def signed_by(self, request: Request, secrets: Secrets) -> str | None:
        """See Provider."""
        scheme, _, bearer = request.headers.get("authorization", "").partition(" ")
        claimed = bearer.strip() if scheme.lower() == "bearer" else request.headers.get("x-webhook-token", "").strip()
        return signer(secrets, lambda token: same_token(claimed, token))

    def parse(self, request: Request) -> Event:
        """See Provider. The event is the body's `event` or `type`, else `event`."""
        payload = payload_of(request)
        event = text("event", "type", default="event")(payload) or ""
        named = external_id(request, "idempotency-key", "webhook-id", "x-request-id")
        said = anybody.event_of("generic", event, payload, request, external_id=named)
        in_header = request.headers.get("agentfleet-hops", "")
        if in_header.isascii() and in_header.isdecimal() and len(in_header) < 6:
            return replace(said, hops=max(said.hops, hops({"agentfleet-hops": int(in_header)})))
        return said
