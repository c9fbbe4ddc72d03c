"""Senders that sign in their own way with an HMAC, such as Stripe: each source says how, in its SignatureScheme."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta

from agents.spec import SignatureScheme
from webhooks.providers import anybody
from webhooks.providers.base import Event, Provider, Request, Secrets
from webhooks.providers.payloads import external_id, identifier, payload_of
from webhooks.providers.signatures import from_base64, from_hex, is_fresh, mac, same, signer

MOST_SIGNATURES = 10  # of one header: more are somebody making us work

_placeholder = re.compile(r"(\{body\}|\{timestamp\}|\{id\})")


class Hmac(Provider):
    secret_credential = "hmac_webhook_secret"  # noqa: S105 - the type of a credential, not a secret

    def signed_by(self, request: Request, secrets: Secrets) -> str | None:
        """See Provider. None as well where the source does not say how it signs, or signs something but the body."""
        scheme = request.scheme
        if scheme is None or "{body}" not in scheme.signed:
            return None
        pairs = _pairs(request.headers.get(scheme.header.lower(), ""), scheme)
        sent_at = _sent_at(request, scheme, pairs)
        if not _in_time(scheme, sent_at, request):
            return None
        signed = _signed(request, scheme, sent_at)
        claimed = [_decoded(written, scheme) for written in pairs.get(scheme.signature_key, [])[:MOST_SIGNATURES]]
        return signer(secrets, lambda secret: any(same(one, mac(secret, signed, scheme.algorithm)) for one in claimed))

    def parse(self, request: Request) -> Event:
        """See Provider. The event is in the header or at the path that the scheme names, else `event`."""
        scheme, payload = request.scheme or SignatureScheme(header=""), payload_of(request)
        in_header = request.headers.get(scheme.event_header.lower(), "") if scheme.event_header else ""
        event = in_header or identifier(scheme.event)(payload) or "event"
        named = external_id(request, scheme.id_header.lower())
        return anybody.event_of("hmac", event, payload, request, external_id=named)


def _pairs(header: str, scheme: SignatureScheme) -> Mapping[str, list[str]]:
    """Name to values, as of `t=1,v1=2,v1=3`; a header that is no list of pairs is the value of the signature."""
    if not scheme.separator:
        return {scheme.signature_key: [header]}
    found: dict[str, list[str]] = {}
    for pair in header.split(scheme.separator):
        name, _, value = pair.strip().partition("=")
        found.setdefault(name, []).append(value)
    return found


def _sent_at(request: Request, scheme: SignatureScheme, pairs: Mapping[str, list[str]]) -> str:
    if scheme.timestamp_key:
        return pairs.get(scheme.timestamp_key, [""])[0]
    return request.headers.get(scheme.timestamp_header.lower(), "")


def _in_time(scheme: SignatureScheme, sent_at: str, request: Request) -> bool:
    """A time that is not signed proves nothing: anybody may write a new one."""
    if "{timestamp}" not in scheme.signed or not scheme.tolerance_seconds:
        return True
    return is_fresh(sent_at, request.received_at, timedelta(seconds=scheme.tolerance_seconds))


def _signed(request: Request, scheme: SignatureScheme, sent_at: str) -> bytes:
    filled = {
        "{body}": request.body,
        "{timestamp}": sent_at.encode(errors="surrogatepass"),
        "{id}": request.headers.get(scheme.id_header.lower(), "").encode(errors="surrogatepass"),
    }
    return b"".join(filled.get(part, part.encode()) for part in _placeholder.split(scheme.signed))


def _decoded(written: str, scheme: SignatureScheme) -> bytes | None:
    if not written.startswith(scheme.prefix):
        return None
    digest = written.removeprefix(scheme.prefix).strip()
    return from_hex(digest.lower()) if scheme.encoding == "hex" else from_base64(digest)
