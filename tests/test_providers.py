"""What each provider sends, and what agents are told of it. GitHub's is in tests/test_github.py."""

from __future__ import annotations

import base64
import json
from contextlib import suppress
from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agents import storable
from agents.credential_types import BUILT_IN
from agents.manifest import filters, sources
from tests.signing import NOON, SECRET, SIGNERS, TOKENS, asked, digest, standard
from webhooks.providers import PROVIDERS
from webhooks.providers.base import BadBody, Event, Handshake, Ignored
from webhooks.providers.payloads import LONG_TEXT, LONGEST_TEXT

Said = Event | Ignored | Handshake


def say(provider: str, value: Any, headers: dict[str, str] | None = None, **changes: Any) -> Said:
    return PROVIDERS[provider].parse(asked(provider, headers or {}, json.dumps(value).encode(), **changes))


def event(provider: str, value: Any, headers: dict[str, str] | None = None, **changes: Any) -> Event:
    said = say(provider, value, headers, **changes)
    assert isinstance(said, Event)
    return said


def told(provider: str, value: Any, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """What agents are told, without the time of receipt, which is the same each time."""
    context = event(provider, value, headers).context
    assert context.pop("timestamp") == "2026-03-19T12:00:00.123Z"
    return context


def test_sentry_tells_of_issues_alerts_errors_and_comments() -> None:
    actor = {"type": "user", "name": "Ada"}
    issue = {
        "title": "TypeError: x is undefined",
        "web_url": "https://acme.sentry.io/issues/1170820242/",
        "project": {"slug": "front"},
        "assignedTo": {"type": "user", "name": "Grace"},
        "status": "unresolved",
    }
    sent = {"action": "assigned", "actor": actor, "data": {"issue": issue}}
    assert told("sentry", sent, {"sentry-hook-resource": "issue"}) == {
        "source": "sentry",
        "event": "issue",
        "action": "assigned",
        "repo": "front",
        "sender": "Ada",
        "title": "TypeError: x is undefined",
        "url": "https://acme.sentry.io/issues/1170820242/",
        "assignee": "Grace",
        "state": "unresolved",
    }
    alert = {"event": {"title": "Slow", "web_url": "https://s/1", "message": "x" * 5000}, "triggered_rule": "P95"}
    said = told("sentry", {"action": "triggered", "data": alert}, {"sentry-hook-resource": "event_alert"})
    assert (said["repo"], said["title"], said["url"], said["sender"]) == ("P95", "Slow", "https://s/1", "unknown")
    assert said["body"] == "x" * LONG_TEXT + "..."
    metric = {"metric_alert": {"organization": {"slug": "acme"}, "title": "Errors", "web_url": "https://s/2"}}
    said = told("sentry", {"action": "critical", "data": metric}, {"sentry-hook-resource": "metric_alert"})
    assert (said["repo"], said["title"], said["url"]) == ("acme", "Errors", "https://s/2")
    error = {"error": {"project": {"slug": "back"}, "title": "E", "web_url": "https://s/3", "message": "m"}}
    said = told("sentry", {"action": "created", "data": error}, {"sentry-hook-resource": "error"})
    assert (said["repo"], said["title"], said["body"]) == ("back", "E", "m")
    comment = {"comment": "adding a comment", "issue_id": 1, "project_slug": "front"}
    said = told("sentry", {"action": "created", "data": comment}, {"sentry-hook-resource": "comment"})
    assert (said["repo"], said["comment"]) == ("front", "adding a comment")
    said = told("sentry", {"action": "created"}, {"sentry-hook-resource": "installation"})
    assert (said["repo"], said["title"]) == ("", "created")


def test_sentry_without_a_resource_is_ignored() -> None:
    said = say("sentry", {}, {"request-id": "r-1"})
    assert said == Ignored("no Sentry-Hook-Resource header that names one", "r-1")


LINEAR = {
    "action": "update",
    "type": "Issue",
    "organizationId": "org-1",
    "webhookTimestamp": 1676056940508,
    "actor": {"name": "Ada", "email": "ada@acme.test"},
    "data": {
        "number": 7,
        "title": "Crash",
        "description": "It crashes.",
        "url": "https://linear.app/acme/issue/ENG-7",
        "creator": {"email": "grace@acme.test"},
        "assignee": {"email": "ada@acme.test"},
        "labels": [{"name": "Bug"}],
        "state": {"name": "In Progress"},
    },
}


def test_linear_tells_of_issues_and_comments_in_githubs_words() -> None:
    assert told("linear", LINEAR) == {
        "source": "linear",
        "event": "issues",
        "action": "update",
        "repo": "org-1",
        "sender": "ada@acme.test",
        "number": 7,
        "title": "Crash",
        "body": "It crashes.",
        "url": "https://linear.app/acme/issue/ENG-7",
        "author": "grace@acme.test",
        "assignee": "ada@acme.test",
        "labels": ["Bug"],
        "state": "In Progress",
    }
    comment = {"body": "Me too.", "user": {"email": "alan@acme.test"}, "issue": LINEAR["data"]}
    said = told("linear", LINEAR | {"type": "Comment", "data": comment, "createdBy": {"email": "alan@acme.test"}})
    assert (said["event"], said["number"], said["comment"]) == ("issue_comment", 7, "Me too.")
    assert (said["author"], said["commentAuthor"], said["sender"]) == (
        "grace@acme.test",
        "alan@acme.test",
        "alan@acme.test",
    )
    said = told("linear", LINEAR | {"type": "Project", "data": {"team": {"organization": {"id": "org-2"}}}})
    assert (said["event"], said["title"]) == ("project", "update")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"action": 1}, "no action"),
        ({"data": [], "type": ""}, "no type and no data"),
        ({"organizationId": None}, "no organization"),
        ({"type": "Comment"}, "no issue"),
    ],
)
def test_linear_without_what_makes_an_event_is_ignored(changes: dict[str, Any], reason: str) -> None:
    assert say("linear", LINEAR | changes, {"linear-delivery": "d"}) == Ignored(reason, "d")


def test_mintlify_tells_how_a_build_ended() -> None:
    sent = {
        "status": "failed",
        "project": "docs",
        "error": "bad link",
        "git": {"branch": "next"},
        "logs_url": "https://l",
    }
    assert told("mintlify", sent) == {
        "source": "mintlify",
        "event": "build",
        "action": "failed",
        "repo": "docs",
        "sender": "mintlify",
        "title": "Build failed",
        "body": "Build failed: bad link",
        "url": "https://l",
        "branch": "next",
        "conclusion": "failure",
    }
    said = event("mintlify", {"action": "succeeded", "timestamp": "2026-03-19T11:59:00Z", "error": "none"})
    assert said.context["timestamp"] == "2026-03-19T11:59:00Z"
    assert (said.context["conclusion"], said.context["body"], said.context["branch"]) == ("success", "none", "main")
    assert say("mintlify", {}) == Ignored("no action and no status")


def in_slack(**changes: Any) -> dict[str, Any]:
    message = {"type": "message", "user": "U1", "text": "help", "channel": "C1", "ts": "1.2", "thread_ts": "1.1"}
    return {"type": "event_callback", "team_id": "T1", "event_id": "Ev1", "event": message | changes}


def test_slack_tells_what_was_said_and_where_to_answer() -> None:
    assert told("slack", in_slack()) == {
        "source": "slack",
        "event": "message",
        "repo": "T1",
        "sender": "U1",
        "body": "help",
        "comment": "channel:C1",
        "channel": "C1",
        "thread": "1.1",
        "messageId": "1.2",
    }
    item = {"type": "message", "channel": "C2", "ts": "1.3"}
    said = told(
        "slack", in_slack(type="reaction_added", reaction="eyes", item=item, channel=None, thread_ts=None, ts=None)
    )
    assert (said["title"], said["comment"], said["channel"], said["thread"]) == ("eyes", "message:C2", "C2", "1.3")
    assert told("slack", in_slack(user=None, bot_id="B1", type="app_mention"))["sender"] == "B1"
    assert told("slack", in_slack(type="team_join", user={"id": "U2"}))["title"] == "team_join"
    assert event("slack", in_slack()).unique
    assert say("slack", {"type": "block_actions", "event_id": "Ev2"}) == Ignored(
        "no event_callback with an event", "Ev2"
    )
    assert say("slack", {"type": "url_verification", "challenge": "c"}) == Handshake({"challenge": "c"})


def test_discord_tells_of_commands_buttons_and_forms() -> None:
    options = [{"name": "issue", "options": [{"name": "number", "value": 7}, {"name": "urgent", "value": True}]}]
    sent = {
        "type": 2,
        "id": "846462639134605312",
        "guild_id": "G1",
        "channel_id": "C1",
        "member": {"user": {"username": "ada"}},
        "data": {"name": "fix", "options": options},
    }
    assert told("discord", sent) == {
        "source": "discord",
        "event": "application_command",
        "action": "fix",
        "repo": "G1",
        "sender": "ada",
        "title": "fix",
        "body": "issue, number: 7, urgent: True",
        "branch": "C1",
    }
    said = event("discord", sent)
    assert (said.external_id, said.unique, said.reply) == ("846462639134605312", True, {"type": 5})
    said = event("discord", sent | {"type": 3, "data": {"component_type": 2, "custom_id": "retry"}})
    assert (said.context["action"], said.context["title"], said.event) == ("2", "retry", "message_component")
    form = {"custom_id": "report", "components": [{"components": [{"custom_id": "what", "value": "it broke"}]}]}
    said = event("discord", sent | {"type": 5, "data": form, "member": None, "user": {"username": "alan"}})
    assert (said.context["action"], said.context["title"], said.context["body"]) == (
        "report",
        "report",
        "what: it broke",
    )
    assert said.sender == "alan"
    assert event("discord", sent | {"type": 4}).reply == {"type": 8, "data": {"choices": []}}
    assert say("discord", {"type": 1}) == Handshake({"type": 1})
    assert say("discord", {"type": True}) == say("discord", {"type": 9}) == Ignored("no interaction of a known type")


def test_twitter_tells_of_the_first_item_of_its_list() -> None:
    post = {"id_str": "1", "text": "@bot help", "user": {"screen_name": "ada"}, "timestamp_ms": "1773921599000"}
    said = event("twitter", {"for_user_id": "42", "tweet_create_events": [post]})
    assert said.context == {
        "source": "twitter",
        "event": "tweet_create_events",
        "action": "create",
        "repo": "42",
        "sender": "ada",
        "timestamp": "2026-03-19T11:59:59.000Z",
        "title": "@bot help",
        "body": "@bot help",
        "url": "https://x.com/ada/status/1",
        "author": "ada",
    }
    assert said.external_id == "1"
    liked = {"id": "f1", "user": {"screen_name": "alan"}, "favorited_status": post}
    said = event("twitter", {"for_user_id": "42", "favorite_events": [liked]})
    assert (said.context["action"], said.sender, said.context["author"]) == ("favorite", "alan", "ada")
    followed = {"source": {"screen_name": "grace"}, "type": "follow", "created_timestamp": "1773921599000"}
    assert event("twitter", {"for_user_id": "42", "follow_events": [followed]}).sender == "grace"
    written = {"type": "message_create", "message_create": {"message_data": {"text": "psst"}}}
    said = event("twitter", {"for_user_id": "42", "direct_message_events": [written]})
    assert (said.context["action"], said.context["body"]) == ("message", "psst")
    assert say("twitter", {"for_user_id": "42"}) == Ignored("no list of events")


def test_twitters_challenge_is_answered_with_the_secret_that_is_first() -> None:
    shaken = PROVIDERS["twitter"].greet({"crc_token": "challenge"}, {"default": f"\n{SECRET}\nold"})
    token = base64.b64encode(digest(SECRET, b"challenge").digest()).decode()
    assert shaken == Handshake({"response_token": f"sha256={token}"})
    assert PROVIDERS["twitter"].greet({}, {"default": SECRET}) is None
    assert PROVIDERS["twitter"].greet({"crc_token": "challenge"}, {"default": "\n"}) is None


IN_GITLAB = {
    "user": {"username": "ada"},
    "project": {"path_with_namespace": "acme/shop", "web_url": "https://gitlab.test/acme/shop"},
}


def in_gitlab(hook: str, **value: Any) -> dict[str, Any]:
    return told("gitlab", IN_GITLAB | value, {"x-gitlab-event": hook})


def test_gitlab_tells_of_issues_and_merge_requests() -> None:
    issue = {
        "iid": 23,
        "title": "Broken",
        "description": "It broke.",
        "url": "https://gitlab.test/acme/shop/-/issues/23",
        "action": "open",
        "state": "opened",
        "source_branch": "fix/it",
    }
    more = {"labels": [{"title": "bug"}], "assignees": [{"username": "grace"}]}
    expected = {
        "source": "gitlab",
        "event": "issue",
        "action": "open",
        "repo": "acme/shop",
        "sender": "ada",
        "number": 23,
        "title": "Broken",
        "body": "It broke.",
        "url": "https://gitlab.test/acme/shop/-/issues/23",
        "assignee": "grace",
        "labels": ["bug"],
        "state": "opened",
    }
    assert in_gitlab("Issue Hook", object_attributes=issue, **more) == expected
    assert in_gitlab("Confidential Issue Hook", object_attributes=issue, **more) == expected
    merge = in_gitlab("Merge Request Hook", object_attributes=issue, **more)
    assert merge == expected | {"event": "merge_request", "branch": "fix/it"}


def test_gitlab_tells_of_notes_pipelines_jobs_releases_and_tags() -> None:
    note = {"note": "Please fix.", "url": "https://gitlab.test/n/1"}
    merge = {"iid": 5, "title": "Fix", "source_branch": "fix", "state": "opened", "labels": [{"title": "bug"}]}
    said = in_gitlab("Note Hook", object_attributes=note, merge_request=merge)
    assert (said["number"], said["comment"], said["commentAuthor"]) == (5, "Please fix.", "ada")
    assert (said["branch"], said["labels"]) == ("fix", ["bug"])
    pipeline = {"id": 31, "ref": "main", "status": "failed", "url": "https://gitlab.test/p/31"}
    said = in_gitlab("Pipeline Hook", object_attributes=pipeline)
    assert (said["branch"], said["conclusion"], said["state"], said["runId"]) == ("main", "failure", "failed", 31)
    said = in_gitlab("Pipeline Hook", object_attributes=pipeline | {"status": "running"})
    assert "conclusion" not in said
    said = in_gitlab("Job Hook", build_name="deploy", build_status="success", ref="main", environment={"name": "live"})
    assert (said["title"], said["conclusion"], said["environment"]) == ("deploy", "success", "live")
    said = in_gitlab("Release Hook", action="create", name="v1", url="https://gitlab.test/r/1")
    assert (said["action"], said["title"], said["url"]) == ("create", "v1", "https://gitlab.test/r/1")
    assert in_gitlab("Tag Push Hook", ref="refs/tags/v1")["branch"] == "refs/tags/v1"
    assert in_gitlab("Wiki Page Hook", object_attributes={"action": "update"})["title"] == "update"


def test_gitlab_tells_filters_which_files_a_push_changed() -> None:
    commits = [
        {"added": ["a"], "modified": ["b"], "removed": []},
        {"message": "Newest", "added": [], "modified": ["a", 7], "removed": ["c"]},
    ]
    sent = IN_GITLAB | {"ref": "refs/heads/main", "commits": commits, "user_username": "ada"}
    headers = {"x-gitlab-event": "Push Hook", "x-gitlab-event-uuid": "u", "idempotency-key": "k"}
    said = event("gitlab", sent, headers)
    assert said.facts == {"paths": ["a", "b", "c"]}
    assert (said.context["branch"], said.context["title"], said.external_id) == ("main", "Newest", "k")
    assert event("gitlab", sent, headers | {"idempotency-key": ""}).external_id == "u"


@pytest.mark.parametrize("hook", ["", "Push", "<b> Hook"])
def test_gitlab_without_a_hook_or_a_project_is_ignored(hook: str) -> None:
    assert say("gitlab", IN_GITLAB, {"x-gitlab-event": hook}) == Ignored("no X-Gitlab-Event header that names a hook")
    assert say("gitlab", {}, {"x-gitlab-event": "Push Hook"}) == Ignored("no project.path_with_namespace")


@pytest.mark.parametrize("provider", ["generic", "standardwebhooks", "hmac"])
def test_anybody_elses_event_is_told_by_what_has_a_known_name(provider: str) -> None:
    data = {"title": "Disk full", "message": "97 %", "labels": ["disk", {"name": "prod"}, 7], "number": 3}
    sent = {"type": "alert", "data": data, "sender": "monitor", "url": "https://m/1", "status": "firing", "repo": 7}
    assert told(provider, sent) == {
        "source": provider,
        "event": "alert",
        "sender": "monitor",
        "number": 3,
        "title": "Disk full",
        "body": "97 %",
        "url": "https://m/1",
        "labels": ["disk", "prod"],
        "state": "firing",
    }
    assert told(provider, [])["event"] == "event"


@pytest.mark.parametrize("provider", ["generic", "standardwebhooks", "hmac"])
def test_only_what_names_its_event_can_come_twice(provider: str) -> None:
    assert not event(provider, {"type": "pressed", "id": "button-1"}).unique
    assert event(provider, {"type": "paid", "id": "evt_1", "created": 1773921599}).unique


def test_the_length_of_a_chain_of_causes_is_believed_where_it_is_signed() -> None:
    assert event("standardwebhooks", {"agentfleet-hops": 3}).hops == 3
    assert event("standardwebhooks", {}, {"agentfleet-hops": "3"}).hops == 0
    assert event("generic", {}, {"agentfleet-hops": "3"}).hops == 3  # the token vouches for all of it
    assert event("generic", {"agentfleet-hops": 5}, {"agentfleet-hops": "3"}).hops == 5
    assert [event("hmac", {"agentfleet-hops": odd}).hops for odd in (-1, "2", 10**9, None)] == [0, 0, 32_767, 0]


def test_a_request_by_hand_is_told_as_it_is() -> None:
    sent = {
        "event": "issues",
        "action": "opened",
        "repo": "o/r",
        "number": 1,
        "labels": ["bug"],
        "conclusion": "failure",
    }
    assert told("test", sent) == {"source": "test", "sender": "test", **sent}
    assert told("test", {}) == {"source": "test", "event": "test", "repo": "", "sender": "test"}
    assert not event("test", sent).unique


def test_events_that_say_the_same_have_one_fingerprint_whenever_they_do() -> None:
    first = event("slack", in_slack())
    again = event("slack", in_slack(ts="9.9"), received_at=NOON + timedelta(hours=1))
    assert first.fingerprint == again.fingerprint != event("slack", in_slack(text="no")).fingerprint
    assert len(first.fingerprint) == 32


# Whatever is sent


@pytest.mark.parametrize("provider", PROVIDERS)
def test_what_is_not_json_is_a_bad_body(provider: str) -> None:
    for body in (b"", b"{", b"\xff", b"[" * 200_000, b'{"a": NaN}'):
        with pytest.raises(BadBody, match=r"^invalid JSON body$"):
            PROVIDERS[provider].parse(asked(provider, {}, body))


NAMES = sorted(
    {"type", "action", "data", "event", "payload", "items", "id", "name", "title", "labels", "options", "components"}
    | {"issue", "comment", "project", "path_with_namespace", "object_attributes", "commits", "added", "organizationId"}
    | {"user", "value", "channel", "item", "tweet_create_events", "favorited_status", "text", "timestamp_ms", "team_id"}
    | {"repository", "full_name", "agentfleet-hops", "timestamp", "status", "ref", "custom_id", "member", "url"}
)
rough_text = st.text(st.characters(exclude_categories=()))  # with halves of characters
scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | rough_text
    | st.sampled_from(["Comment", "event_callback"])
)
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES), inner, max_size=8)
)
HEADERS = sorted({name for sign in (SIGNERS | TOKENS).values() for name in sign(b"", NOON)})
HEADERS += [
    "content-type",
    "sentry-hook-resource",
    "x-gitlab-event",
    "idempotency-key",
    "webhook-id",
    "agentfleet-hops",
]
odd_values = ["application/x-www-form-urlencoded", "issue", "Note Hook", "v0=00", "sha256=AA==", "t=1,v1=0", "v1,AA=="]
any_headers = st.dictionaries(st.sampled_from(HEADERS), rough_text | st.sampled_from(odd_values))


def assert_harmless(said: Event | Ignored | Handshake) -> None:
    """JSON that every database can hold, bounded, and of the types that filters expect."""
    if not isinstance(said, Event):
        return
    json.dumps(said.context, allow_nan=False)
    assert storable.json(said.context) == said.context
    assert len(said.event) <= 100
    assert len(said.external_id) <= 200
    assert 0 <= said.hops < 2**15
    for key, value in said.context.items():
        assert type(value) is {"labels": list, "number": int, "runId": int}.get(key, str), key
        assert len(str(value)) <= LONGEST_TEXT + 10


@settings(deadline=None, max_examples=300)  # a busy machine is no failure
@given(st.sampled_from(sorted(PROVIDERS)), any_headers, anything)
def test_no_json_raises_anything_but_bad_body(provider: str, headers: dict[str, str], value: Any) -> None:
    with suppress(BadBody):  # NaN and infinity
        assert_harmless(say(provider, value, headers))


@settings(deadline=None, max_examples=300)  # a busy machine is no failure
@given(st.sampled_from(sorted(PROVIDERS)), any_headers, st.binary(), st.dictionaries(st.text(), rough_text))
@example("discord", SIGNERS["discord"](b"", NOON), b"", {"default": "00", "other": "\ud800"})
@example("standardwebhooks", standard(b""), b"", {"default": "whpk_", "other": "whsec_\ud800"})
def test_no_bytes_and_headers_raise_anything_but_bad_body_and_nobody_signed_them(
    provider: str, headers: dict[str, str], body: bytes, secrets: dict[str, str]
) -> None:
    request = asked(provider, headers, body)
    assert PROVIDERS[provider].signed_by(request, secrets) is None
    with suppress(BadBody):
        assert_harmless(PROVIDERS[provider].parse(request))


def test_a_text_without_end_is_cut() -> None:
    said = told("generic", {"title": "x" * 10**6, "url": "y" * 10**6, "labels": ["z"] * 10**4})
    assert (len(said["title"]), len(said["url"]), len(said["labels"])) == (LONG_TEXT + 3, LONGEST_TEXT, 200)


def test_a_form_says_the_same_as_json() -> None:
    form = {"content-type": "application/x-www-form-urlencoded"}
    body = urlencode({"payload": json.dumps(in_slack())}).encode()
    assert PROVIDERS["slack"].parse(asked("slack", form, body)) == say("slack", in_slack())


# What the rest of the system knows of them


def test_every_provider_can_be_written_into_a_project_with_a_secret_that_stays_on_the_host() -> None:
    assert set(PROVIDERS) == set(filters.FILTERS)
    secrets = {name: provider.secret_credential for name, provider in PROVIDERS.items() if provider.secret_credential}
    assert secrets == sources.SECRETS
    for name, kind in secrets.items():
        assert set(PROVIDERS[name].secret_fields) <= BUILT_IN[kind].fields.keys()
    shared = {kind for kind in secrets.values() if not BUILT_IN[kind].host_only}
    assert shared == {"discord_bot", "x_twitter_api"}, "which agents may have as well"
