"""GitLab: the hooks of projects and groups, told in the words of GitHub's events where they mean the same.

The secret is a token that every request carries; nothing proves that the body is the one it was sent with.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

from webhooks.providers.base import Event, Ignored, Provider, Request, Secrets
from webhooks.providers.payloads import (
    Keys,
    Reader,
    branch,
    changed_paths,
    external_id,
    long_text,
    names,
    number,
    payload_of,
    text,
    timestamp,
    told,
)
from webhooks.providers.signatures import same_token, signer

# GitHub's words for how a pipeline or a job ended; `state` keeps GitLab's own.
CONCLUSIONS = {"success": "success", "failed": "failure", "canceled": "cancelled", "skipped": "skipped"}

_header = re.compile(r"(?:Confidential )?([A-Za-z][A-Za-z ]{0,80}) Hook")
_project = text("project.path_with_namespace", "repository.path_with_namespace")


class GitLab(Provider):
    secret_credential = "gitlab_webhook_secret"  # noqa: S105 - the type of a credential, not a secret
    event_header = "x-gitlab-event"

    def signed_by(self, request: Request, secrets: Secrets) -> str | None:
        """See Provider."""
        claimed = request.headers.get("x-gitlab-token", "").strip()
        return signer(secrets, lambda secret: same_token(claimed, secret))

    def parse(self, request: Request) -> Event | Ignored:
        """See Provider. The event is the header's in lower case: `Merge Request Hook` is merge_request."""
        payload = payload_of(request)
        # of the two, this is the same for each try of one delivery, and for no other
        delivery = external_id(request, "idempotency-key", "x-gitlab-event-uuid")
        named = _header.fullmatch(request.headers.get(self.event_header, ""))
        if named is None:
            return Ignored("no X-Gitlab-Event header that names a hook", delivery)
        event = named[1].lower().replace(" ", "_")
        if _project(payload) is None:
            return Ignored("no project.path_with_namespace", delivery)
        keys = {**_base(request.received_at), **EVENTS.get(event, _other(event))}
        context = {"source": "gitlab", "event": event, **told(payload, keys)}
        facts = {"paths": changed_paths(payload)} if event == "push" else {}
        return Event(event=event, context=context, facts=facts, external_id=delivery, unique=event in EVENTS)


def _base(received_at: datetime) -> Keys:
    return {
        "action": text("object_attributes.action", "action"),
        "repo": _project,
        "sender": text("user.username", "user_username", "user_name", default="unknown"),
        "timestamp": lambda _payload: timestamp(received_at),
    }


def _other(event: str) -> Keys:
    return {
        "number": number("object_attributes.iid"),
        "title": text("object_attributes.title", "object_attributes.action", default=event),
        "url": text("object_attributes.url", "url"),
    }


def _conclusion(path: str) -> Reader:
    status = text(path)
    return lambda payload: CONCLUSIONS.get(status(payload) or "")


_ISSUE: Keys = {
    "number": number("object_attributes.iid"),
    "title": text("object_attributes.title"),
    "body": long_text("object_attributes.description"),
    "url": text("object_attributes.url"),
    "assignee": text("assignees.0.username", "assignee.username"),
    "labels": names("labels", key="title"),
    "state": text("object_attributes.state"),
}
_NOTED = ("issue", "merge_request", "snippet")
_PUSH: Keys = {
    "branch": branch("ref"),
    "title": text("commits.-1.message", "commits.-1.title"),  # the last is the newest
    "url": text("commits.-1.url", "project.web_url"),
    "author": text("commits.-1.author.name", "user_username"),
}


def _labels_of_noted(payload: Any) -> list[str]:
    of_issue: list[str] = names("issue.labels", key="title")(payload)
    return of_issue or list(names("merge_request.labels", key="title")(payload))


EVENTS: dict[str, Keys] = {
    "issue": _ISSUE,
    "merge_request": {**_ISSUE, "branch": text("object_attributes.source_branch")},
    "note": {
        "number": number("issue.iid", "merge_request.iid"),
        "title": text(*(f"{noted}.title" for noted in _NOTED), "commit.message"),
        "url": text("object_attributes.url"),
        "comment": long_text("object_attributes.note"),
        "labels": _labels_of_noted,
        "branch": text("merge_request.source_branch"),
        "state": text("issue.state", "merge_request.state"),
        "commentAuthor": text("user.username"),
    },
    "push": _PUSH,
    "tag_push": _PUSH,
    "pipeline": {
        "number": number("merge_request.iid"),
        "title": text("object_attributes.name", "commit.title", default="pipeline"),
        "url": text("object_attributes.url"),
        "branch": text("object_attributes.ref"),
        "author": text("commit.author.name"),
        "conclusion": _conclusion("object_attributes.status"),
        "state": text("object_attributes.status"),
        "runId": number("object_attributes.id"),
    },
    "job": {
        "title": text("build_name"),
        "branch": branch("ref"),
        "author": text("commit.author_name"),
        "conclusion": _conclusion("build_status"),
        "state": text("build_status"),
        "environment": text("environment.name"),
        "runId": number("pipeline_id"),
    },
    "release": {
        "title": text("name", "tag"),
        "body": long_text("description"),
        "url": text("url"),
        "author": text("commit.author.name"),
    },
}
