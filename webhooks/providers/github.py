"""GitHub: which secret signed a request, and what the event says (spec/action-llama.md 2.2 and 2.3).

The keys of a context and where they come from are the table `EVENTS`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from webhooks.providers.base import Event, Ignored, Provider, Request, Secrets
from webhooks.providers.payloads import (
    Keys,
    TextReader,
    at,
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
from webhooks.providers.signatures import from_hex, mac, same, signer

_event_name = re.compile(r"[A-Za-z0-9_.-]{1,100}")


class GitHub(Provider):
    secret_credential = "github_webhook_secret"  # noqa: S105 - the type of a credential, not a secret
    event_header = "x-github-event"

    def signed_by(self, request: Request, secrets: Secrets) -> str | None:
        """See Provider."""
        algorithm, _, claimed = request.headers.get("x-hub-signature-256", "").partition("=")
        if algorithm != "sha256":
            return None
        return signer(secrets, lambda secret: same(from_hex(claimed), mac(secret, request.body)))

    def parse(self, request: Request) -> Event | Ignored:
        """See Provider. Ignores what is no event, pings, events of no repository, and events without their object."""
        payload = payload_of(request)
        delivery = external_id(request, "x-github-delivery")
        event = request.headers.get(self.event_header, "")
        shape = EVENTS.get(event) or _other(event)
        if reason := _why_ignored(event, shape, payload):
            return Ignored(reason, delivery)
        keys = {**_base(request.received_at), **shape.keys}
        context = {"source": "github", "event": event, **told(payload, keys)}
        facts = {"paths": changed_paths(payload)} if event == "push" else {}
        return Event(event=event, context=context, facts=facts, external_id=delivery, unique=event in EVENTS)


@dataclass(frozen=True)
class Shape:
    """An event's own keys, after those that every event has; `needs` names the objects it says nothing without."""

    keys: Keys
    needs: tuple[str, ...] = ()


def _issue_like(name: str) -> Keys:
    return {
        "number": number(f"{name}.number"),
        "title": text(f"{name}.title"),
        "body": long_text(f"{name}.body"),
        "url": text(f"{name}.html_url"),
        "author": text(f"{name}.user.login"),
        "assignee": text(f"{name}.assignee.login"),
        "labels": names(f"{name}.labels"),
    }


def _other(event: str) -> Shape:
    """What events that stand in no table have in common: an object of their own name, a comment or an alert."""
    return Shape(
        {
            "number": number(f"{event}.number", "alert.number", "discussion.number", "pull_request.number"),
            "title": text("action", default=event),
            "url": text(f"{event}.html_url", "comment.html_url", "alert.html_url", "discussion.html_url"),
            "author": text(f"{event}.user.login", f"{event}.actor.login", f"{event}.creator.login"),
            "branch": _branch_of(event),
            "conclusion": text(f"{event}.conclusion"),
            "comment": long_text("comment.body"),
            "state": text(f"{event}.state", "alert.state", "state"),
            "runId": number(f"{event}.run_id"),
            "commentAuthor": text("comment.user.login"),
        }
    )


def _branch_of(event: str) -> TextReader:
    """Where it says that it is a branch's: a bare `ref` may be that of a tag."""
    named = text(f"{event}.head_branch", "pull_request.head.ref", f"{event}.head_ref")
    ref, kind = text("ref"), text("ref_type")

    def read(payload: Any) -> str | None:
        is_branch = kind(payload) == "branch" or (ref(payload) or "").startswith("refs/heads/")
        found = named(payload) or (ref(payload) if is_branch else None)
        return found.removeprefix("refs/heads/") if found else None

    return read


# All of these carry the times of what they are about; others, such as a button pushed twice, may not.
# spec 2.3. The keys it does not have are ours, for agents that look for them (spec 12.15 and 13): commentAuthor,
# state, runId, and everything but the title of the events from check_suite on.
EVENTS = {
    "issues": Shape(_issue_like("issue"), needs=("issue",)),
    "pull_request": Shape(
        {**_issue_like("pull_request"), "branch": text("pull_request.head.ref")}, needs=("pull_request",)
    ),
    "issue_comment": Shape(
        {
            "number": number("issue.number"),
            "title": text("issue.title"),
            "url": text("comment.html_url"),
            "author": text("issue.user.login"),
            "comment": long_text("comment.body"),
            "labels": names("issue.labels"),
            "commentAuthor": text("comment.user.login"),
        },
        needs=("issue", "comment"),
    ),
    "pull_request_review": Shape(
        {
            "number": number("pull_request.number"),
            "title": text("pull_request.title"),
            "url": text("review.html_url"),
            "author": text("pull_request.user.login"),
            "comment": long_text("review.body"),
            "branch": text("pull_request.head.ref"),
            "state": text("review.state"),
            "commentAuthor": text("review.user.login"),
        },
        needs=("review", "pull_request"),
    ),
    "push": Shape(
        {
            "branch": branch("ref"),
            "url": text("compare"),
            "title": text("head_commit.message"),
            "author": text("head_commit.author.username", "pusher.name"),
        }
    ),
    "workflow_run": Shape(
        {
            "title": text("workflow_run.name"),
            "url": text("workflow_run.html_url"),
            "branch": text("workflow_run.head_branch"),
            "author": text("workflow_run.actor.login"),
            "conclusion": text("workflow_run.conclusion"),
            "number": number("workflow_run.pull_requests.0.number"),
            "runId": number("workflow_run.id"),
        },
        needs=("workflow_run",),
    ),
    "check_suite": Shape(
        {
            "title": text("action", default="check_suite"),
            "url": text("check_suite.url"),  # of the API: a suite has no page
            "branch": text("check_suite.head_branch"),
            "conclusion": text("check_suite.conclusion"),
            "number": number("check_suite.pull_requests.0.number"),
        },
        needs=("check_suite",),
    ),
    "check_run": Shape(
        {
            "title": text("check_run.name"),
            "url": text("check_run.html_url"),
            "branch": text("check_run.check_suite.head_branch"),
            "conclusion": text("check_run.conclusion"),
            "number": number("check_run.pull_requests.0.number"),
        },
        needs=("check_run",),
    ),
    "deployment_status": Shape(
        {
            "title": text("action", default="deployment_status"),
            "url": text("deployment_status.target_url", "deployment_status.log_url"),
            "branch": text("deployment.ref"),
            "state": text("deployment_status.state"),
            "environment": text("deployment_status.environment"),
        },
        needs=("deployment_status",),
    ),
    "release": Shape(
        {
            "title": text("release.name", "release.tag_name"),
            "url": text("release.html_url"),
            "author": text("release.author.login"),
            "branch": text("release.target_commitish"),
        },
        needs=("release",),
    ),
    "pull_request_review_comment": Shape(
        {
            "number": number("pull_request.number"),
            "title": text("pull_request.title"),
            "url": text("comment.html_url"),
            "author": text("pull_request.user.login"),
            "comment": long_text("comment.body"),
            "branch": text("pull_request.head.ref"),
            "commentAuthor": text("comment.user.login"),
        },
        needs=("comment", "pull_request"),
    ),
}

_repo = text("repository.full_name")


def _why_ignored(event: str, shape: Shape, payload: Any) -> str:
    """The reason, or an empty text."""
    if not event:
        return "no X-GitHub-Event header"
    if not _event_name.fullmatch(event):
        return "the X-GitHub-Event header does not name an event"
    if event == "ping":
        return "ping"
    if _repo(payload) is None:
        return "no repository.full_name"
    missing = [name for name in shape.needs if not isinstance(at(payload, name), dict)]
    return f"no {' and no '.join(missing)} in {event}" if missing else ""


def _base(received_at: datetime) -> Keys:
    return {
        "action": text("action"),
        "repo": _repo,
        "sender": text("sender.login", default="unknown"),
        "timestamp": lambda _payload: timestamp(received_at),
    }
