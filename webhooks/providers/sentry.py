"""Sentry: integrations and their alerts (spec/action-llama.md 2.2 and 2.3)."""

from __future__ import annotations

import re
from datetime import datetime

from webhooks.providers.base import Event, Ignored, Provider, Request, Secrets
from webhooks.providers.payloads import Keys, external_id, long_text, payload_of, text, timestamp, told
from webhooks.providers.signatures import from_hex, mac, same, signer

_resource = re.compile(r"[A-Za-z0-9_.-]{1,100}")


class Sentry(Provider):
    secret_credential = "sentry_client_secret"  # noqa: S105 - the type of a credential, not a secret
    event_header = "sentry-hook-resource"

    def signed_by(self, request: Request, secrets: Secrets) -> str | None:
        """See Provider."""
        claimed = from_hex(request.headers.get("sentry-hook-signature", ""))
        return signer(secrets, lambda secret: same(claimed, mac(secret, request.body)))

    def parse(self, request: Request) -> Event | Ignored:
        """See Provider. Ignores what names no resource."""
        payload, delivery = payload_of(request), external_id(request, "request-id")
        resource = request.headers.get(self.event_header, "")
        if not _resource.fullmatch(resource):
            return Ignored("no Sentry-Hook-Resource header that names one", delivery)
        keys = {**_base(request.received_at), **RESOURCES.get(resource, _other(resource))}
        context = {"source": "sentry", "event": resource, **told(payload, keys)}
        return Event(event=resource, context=context, external_id=delivery, unique=resource in RESOURCES)


def _base(received_at: datetime) -> Keys:
    return {
        "action": text("action"),
        "repo": text(default=""),  # here so that it stands before the sender
        "sender": text("actor.name", "actor.type", default="unknown"),
        "timestamp": lambda _payload: timestamp(received_at),
    }


def _other(resource: str) -> Keys:
    return {"title": text("action", default=resource)}


# Of several paths the first is that of the spec; the rest are what Sentry's own documents show.
_ISSUE: Keys = {
    "repo": text("data.issue.project.slug", default=""),
    "title": long_text("data.issue.title"),
    "url": text("data.issue.web_url", "data.issue.permalink"),
}
RESOURCES: dict[str, Keys] = {
    "event_alert": {
        "repo": text("data.triggered_rule", default=""),
        "title": long_text("data.event.title"),
        "url": text("data.event.web_url"),
        "body": long_text("data.event.message"),
    },
    "metric_alert": {
        "repo": text("data.metric_alert.organization.slug", default=""),
        "title": long_text("data.metric_alert.title", "data.description_title"),
        "url": text("data.metric_alert.web_url", "data.web_url"),
        "body": long_text("data.description_text"),
    },
    "issue": {
        **_ISSUE,
        "assignee": text("data.issue.assignedTo.name"),
        "state": text("data.issue.status"),
    },
    "error": {
        "repo": text("data.error.project.slug", default=""),
        "title": long_text("data.error.title"),
        "url": text("data.error.web_url"),
        "body": long_text("data.error.message"),
    },
    "comment": {
        **_ISSUE,
        "repo": text("data.issue.project.slug", "data.project_slug", default=""),
        "comment": long_text("data.comment.text", "data.comment"),
    },
}
