"""GitHub: which secret signed a request, and what the event says (spec/action-llama.md 2.2 and 2.3).

The keys of a context and where they come from are the table `EVENTS`. Agents and filters never see a value of the
wrong type: what is not a non-empty string, or not a number that a database can hold, is left out.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs

from agents import clock, storable
from webhooks.providers.base import BadBody, BadSignature, Event, Headers, Ignored

LONG_TEXT = 4000  # characters of a body or a comment that agents are told
EXTERNAL_ID_LENGTH = 200

_signature = re.compile(r"sha256=([0-9a-f]{64})")
_event_name = re.compile(r"[A-Za-z0-9_.-]{1,100}")

Reader = Callable[[Any], Any]  # payload -> the value of one key, or None to leave the key out
TextReader = Callable[[Any], str | None]


class GitHub:
    secret_credential = "github_webhook_secret"  # noqa: S105 - the type of a credential, not a secret

    def signed_by(self, headers: Headers, body: bytes, secrets: Mapping[str, str]) -> str | None:
        """See Provider."""
        claimed = _signature.fullmatch(headers.get("x-hub-signature-256", ""))
        if claimed is None:
            return None
        for name, secret in secrets.items():
            # an empty secret would let anybody sign
            if secret and hmac.compare_digest(claimed[1], _hmac(secret, body)):
                return name
        return None

    def parse(self, headers: Headers, body: bytes, *, received_at: datetime) -> Event | Ignored:
        """See Provider. Ignores what is no event, pings, events of no repository, and events without their object."""
        payload = _payload(headers, body)
        external_id = storable.text(headers.get("x-github-delivery", ""))[:EXTERNAL_ID_LENGTH]
        event = headers.get("x-github-event", "")
        shape = EVENTS.get(event) or _other(event)
        if reason := _why_ignored(event, shape, payload):
            return Ignored(reason, external_id)
        context = _base(event, payload, received_at) | {key: read(payload) for key, read in shape.keys.items()}
        context = {key: value for key, value in context.items() if value is not None}
        return Event(event=event, context=context, external_id=external_id, unique=event in EVENTS)


def parse(
    headers: Headers, body: bytes, secrets: Mapping[str, str], *, received_at: datetime | None = None
) -> Event | Ignored:
    """The whole way for a request that has to be signed: raises BadSignature, then BadBody."""
    if GitHub().signed_by(headers, body, secrets) is None:
        raise BadSignature("signature validation failed")
    return GitHub().parse(headers, body, received_at=received_at or clock.now())


def _hmac(secret: str, body: bytes) -> str:
    return hmac.new(secret.encode(errors="surrogatepass"), body, hashlib.sha256).hexdigest()


# The body


def _payload(headers: Headers, body: bytes) -> Any:
    """The JSON value of the body, or of the field `payload` of a form. Raises BadBody."""
    content_type = headers.get("content-type", "").partition(";")[0].strip().lower()
    text: str | bytes = _form_field(body) if content_type == "application/x-www-form-urlencoded" else body
    try:
        return _json(text)
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, not JSON, or a number without end
        raise BadBody("invalid JSON body") from error


def _form_field(body: bytes) -> str:
    try:
        # GitHub sends one field; more than a few are somebody making us work
        fields = parse_qs(body.decode(errors="replace"), max_num_fields=100)
    except ValueError:
        fields = {}
    if "payload" not in fields:
        raise BadBody("missing payload in form body")
    return fields["payload"][0]


def _json(text: str | bytes) -> Any:
    """As the standard has it: UTF-8, and no NaN or infinity, which Python would take."""
    return json.loads(text.decode() if isinstance(text, bytes) else text, parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")


# Values out of a payload in which anything may be missing or of another type


def _at(value: Any, path: str) -> Any:
    """What is at `path`, whose steps are keys of objects and places in lists; None where it leads nowhere."""
    for step in path.split("."):
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and step.isdigit():
            value = value[int(step)] if int(step) < len(value) else None
        else:
            return None
    return value


def _text(*paths: str, default: str | None = None) -> TextReader:
    """The first of `paths` that holds a non-empty string."""

    def read(payload: Any) -> str | None:
        texts = (_at(payload, path) for path in paths)
        return next((storable.text(text) for text in texts if isinstance(text, str) and text), default)

    return read


def _long_text(path: str) -> TextReader:
    whole = _text(path)

    def read(payload: Any) -> str | None:
        text = whole(payload)
        return text[:LONG_TEXT] + "..." if text and len(text) > LONG_TEXT else text

    return read


def _number(path: str) -> Reader:
    def read(payload: Any) -> int | None:
        number = _at(payload, path)
        return number if type(number) is int and abs(number) < 2**63 else None  # a bool is an int to isinstance

    return read


def _names(path: str) -> Reader:
    """The names of a list of objects: always a list, without the members that have no name."""
    name = _text("name")

    def read(payload: Any) -> list[str]:
        members = _at(payload, path)
        names = map(name, members if isinstance(members, list) else [])
        return [name for name in names if name is not None]

    return read


def _branch(path: str) -> TextReader:
    """A ref by its branch's name; tags keep their whole `refs/tags/…`, so that no branch filter takes them."""
    ref = _text(path)

    def read(payload: Any) -> str | None:
        return (ref(payload) or "").removeprefix("refs/heads/") or None

    return read


# The events


@dataclass(frozen=True)
class Shape:
    """An event's own keys, after those that every event has; `needs` names the objects it says nothing without."""

    keys: dict[str, Reader]
    needs: tuple[str, ...] = ()


def _issue_like(name: str) -> dict[str, Reader]:
    return {
        "number": _number(f"{name}.number"),
        "title": _text(f"{name}.title"),
        "body": _long_text(f"{name}.body"),
        "url": _text(f"{name}.html_url"),
        "author": _text(f"{name}.user.login"),
        "assignee": _text(f"{name}.assignee.login"),
        "labels": _names(f"{name}.labels"),
    }


def _other(event: str) -> Shape:
    return Shape({"title": _text("action", default=event)})


# All of these carry the times of what they are about; others, such as a button pushed twice, may not.
# spec 2.3. The keys it does not have are ours, for agents that look for them (spec 12.15 and 13): commentAuthor,
# state, runId, and everything but the title of the events from check_suite on.
EVENTS = {
    "issues": Shape(_issue_like("issue"), needs=("issue",)),
    "pull_request": Shape(
        _issue_like("pull_request") | {"branch": _text("pull_request.head.ref")}, needs=("pull_request",)
    ),
    "issue_comment": Shape(
        {
            "number": _number("issue.number"),
            "title": _text("issue.title"),
            "url": _text("comment.html_url"),
            "author": _text("issue.user.login"),
            "comment": _long_text("comment.body"),
            "labels": _names("issue.labels"),
            "commentAuthor": _text("comment.user.login"),
        },
        needs=("issue", "comment"),
    ),
    "pull_request_review": Shape(
        {
            "number": _number("pull_request.number"),
            "title": _text("pull_request.title"),
            "url": _text("review.html_url"),
            "author": _text("pull_request.user.login"),
            "comment": _long_text("review.body"),
            "branch": _text("pull_request.head.ref"),
            "state": _text("review.state"),
            "commentAuthor": _text("review.user.login"),
        },
        needs=("review", "pull_request"),
    ),
    "push": Shape(
        {
            "branch": _branch("ref"),
            "url": _text("compare"),
            "title": _text("head_commit.message"),
            "author": _text("head_commit.author.username", "pusher.name"),
        }
    ),
    "workflow_run": Shape(
        {
            "title": _text("workflow_run.name"),
            "url": _text("workflow_run.html_url"),
            "branch": _text("workflow_run.head_branch"),
            "author": _text("workflow_run.actor.login"),
            "conclusion": _text("workflow_run.conclusion"),
            "number": _number("workflow_run.pull_requests.0.number"),
            "runId": _number("workflow_run.id"),
        },
        needs=("workflow_run",),
    ),
    "check_suite": Shape(
        {
            "title": _text("action", default="check_suite"),
            "url": _text("check_suite.url"),  # of the API: a suite has no page
            "branch": _text("check_suite.head_branch"),
            "conclusion": _text("check_suite.conclusion"),
            "number": _number("check_suite.pull_requests.0.number"),
        },
        needs=("check_suite",),
    ),
    "check_run": Shape(
        {
            "title": _text("check_run.name"),
            "url": _text("check_run.html_url"),
            "branch": _text("check_run.check_suite.head_branch"),
            "conclusion": _text("check_run.conclusion"),
            "number": _number("check_run.pull_requests.0.number"),
        },
        needs=("check_run",),
    ),
    "deployment_status": Shape(
        {
            "title": _text("action", default="deployment_status"),
            "url": _text("deployment_status.target_url", "deployment_status.log_url"),
            "branch": _text("deployment.ref"),
            "state": _text("deployment_status.state"),
            "environment": _text("deployment_status.environment"),
        },
        needs=("deployment_status",),
    ),
    "release": Shape(
        {
            "title": _text("release.name", "release.tag_name"),
            "url": _text("release.html_url"),
            "author": _text("release.author.login"),
            "branch": _text("release.target_commitish"),
        },
        needs=("release",),
    ),
    "pull_request_review_comment": Shape(
        {
            "number": _number("pull_request.number"),
            "title": _text("pull_request.title"),
            "url": _text("comment.html_url"),
            "author": _text("pull_request.user.login"),
            "comment": _long_text("comment.body"),
            "branch": _text("pull_request.head.ref"),
            "commentAuthor": _text("comment.user.login"),
        },
        needs=("comment", "pull_request"),
    ),
}

_action, _repo, _sender = _text("action"), _text("repository.full_name"), _text("sender.login", default="unknown")


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
    missing = [name for name in shape.needs if not isinstance(_at(payload, name), dict)]
    return f"no {' and no '.join(missing)} in {event}" if missing else ""


def _base(event: str, payload: Any, received_at: datetime) -> dict[str, Any]:
    return {
        "source": "github",
        "event": event,
        "action": _action(payload),
        "repo": _repo(payload),
        "sender": _sender(payload),
        "timestamp": _timestamp(received_at),
    }


def _timestamp(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
