"""What GitHub sends, who signed it, and what agents are told of it."""

from __future__ import annotations

import hashlib
import hmac
import json
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from agents import storable
from webhooks.providers import PROVIDERS, parse
from webhooks.providers.base import BadBody, BadSignature, Event, Ignored, Request
from webhooks.providers.github import EVENTS, GitHub

PAYLOADS = Path(__file__).parent / "data" / "github"
NOON = datetime(2026, 3, 19, 12, 0, 0, 123_987, tzinfo=UTC)
FORM = "application/x-www-form-urlencoded"
FORGED = "sha256=" + "0" * 64


def payload(name: str) -> Any:
    return json.loads((PAYLOADS / f"{name}.json").read_text())


def sign(body: bytes, secret: str) -> str:
    return "sha256=" + hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()


def asked(headers: dict[str, str], body: bytes) -> Request:
    return Request(headers=headers, body=body, received_at=NOON)


def say(event: str, value: Any, **headers: str) -> Event | Ignored:
    """What GitHub's request with this event and JSON value says."""
    sent = {"x-github-event": event, "content-type": "application/json", **headers}
    return GitHub().parse(asked(sent, json.dumps(value).encode()))


def context(event: str, value: Any) -> dict[str, Any]:
    said = say(event, value)
    assert isinstance(said, Event)
    return said.context


def reason(event: str, value: Any) -> str:
    said = say(event, value)
    assert isinstance(said, Ignored)
    return said.reason


# What agents are told


def base(event: str, action: str | None, repo: str = "Codertocat/Hello-World") -> dict[str, Any]:
    told = {"source": "github", "event": event, "action": action, "repo": repo, "sender": "Codertocat"}
    return {key: value for key, value in told.items() if value} | {"timestamp": "2026-03-19T12:00:00.123Z"}


ISSUE = {
    "number": 1,
    "title": "Spelling error in the README file",
    "body": "It looks like you accidently spelled 'commit' with two 't's.",
    "url": "https://github.com/Codertocat/Hello-World/issues/1",
    "author": "Codertocat",
    "assignee": "Codertocat",
    "labels": ["bug"],
}
TOLD: dict[str, dict[str, Any]] = {
    "issues.opened": base("issues", "opened") | ISSUE,
    "issues.labeled": base("issues", "labeled") | ISSUE,
    "pull_request.opened": base("pull_request", "opened")
    | {
        "number": 2,
        "title": "Update the README with new information.",
        "body": "This is a pretty simple change that we need to pull into master.",
        "url": "https://github.com/Codertocat/Hello-World/pull/2",
        "author": "Codertocat",
        "labels": ["bug"],
        "branch": "changes",
    },
    "issue_comment.created": base("issue_comment", "created")
    | {
        "number": 1,
        "title": "Spelling error in the README file",
        "url": "https://github.com/Codertocat/Hello-World/issues/1#issuecomment-492700400",
        "author": "Codertocat",
        "comment": "You are totally right! I'll get this fixed right away.",
        "labels": ["bug"],
        "commentAuthor": "Codertocat",
    },
    "pull_request_review.submitted": base("pull_request_review", "submitted")
    | {
        "number": 2,
        "title": "Update the README with new information.",
        "url": "https://github.com/Codertocat/Hello-World/pull/2#pullrequestreview-237895671",
        "author": "Codertocat",
        "branch": "changes",
        "state": "commented",
        "commentAuthor": "Codertocat",
    },
    "pull_request_review_comment.created": base("pull_request_review_comment", "created")
    | {
        "number": 2,
        "title": "Update the README with new information.",
        "url": "https://github.com/Codertocat/Hello-World/pull/2#discussion_r284312630",
        "author": "Codertocat",
        "comment": "Maybe you should use more emoji on this line.",
        "branch": "changes",
        "commentAuthor": "Codertocat",
    },
    "push": base("push", None)
    | {
        "branch": "master",
        "url": "https://github.com/Codertocat/Hello-World/commit/6113728f27ae82c7b1a177c8d03f9e96e0adf246",
        "title": "Initial commit",
        "author": "Codertocat",
    },
    # this run's workflow has an empty name
    "workflow_run.completed": base("workflow_run", "completed", "octo-org/octo-repo")
    | {
        "url": "https://github.com/octo-org/octo-repo/actions/runs/289782451",
        "branch": "master",
        "author": "Codertocat",
        "conclusion": "success",
        "number": 2,
        "runId": 289782451,
    },
    "check_suite.completed": base("check_suite", "completed")
    | {
        "title": "completed",
        "url": "https://api.github.com/repos/Codertocat/Hello-World/check-suites/118578147",
        "branch": "changes",
        "conclusion": "success",
        "number": 2,
    },
    "check_run.completed": base("check_run", "completed")
    | {
        "title": "Octocoders-linter",
        "url": "https://github.com/Codertocat/Hello-World/runs/128620228",
        "branch": "changes",
        "conclusion": "failure",
        "number": 2,
    },
    "deployment_status.created": base("deployment_status", "created")
    | {
        "title": "created",
        "url": "https://github.com/Codertocat/Hello-World/runs/145988746?check_suite_focus=true",
        "branch": "master",
        "state": "in_progress",
        "environment": "github-pages",
    },
    "release.created": base("release", "created")
    | {
        "title": "0.0.1",
        "url": "https://github.com/Codertocat/Hello-World/releases/tag/0.0.1",
        "author": "Codertocat",
        "branch": "master",
    },
}


@pytest.mark.parametrize("name", TOLD)
def test_agents_are_told_exactly_this_in_this_order(name: str) -> None:
    assert list(context(name.partition(".")[0], payload(name)).items()) == list(TOLD[name].items())


def test_every_event_with_keys_of_its_own_has_a_real_payload() -> None:
    assert {name.partition(".")[0] for name in TOLD} == set(EVENTS)


def test_an_issue_comment_names_the_issues_author_and_the_commenter() -> None:
    value = payload("issue_comment.created")
    value["issue"]["user"]["login"], value["comment"]["user"]["login"] = "asks", "answers"
    told = context("issue_comment", value)
    assert (told["author"], told["commentAuthor"]) == ("asks", "answers")


def test_a_review_has_its_text_and_its_author() -> None:
    value = payload("pull_request_review.submitted")
    value["review"] |= {"body": "Looks good.", "user": {"login": "reads"}}
    told = context("pull_request_review", value)
    assert (told["author"], told["comment"], told["commentAuthor"]) == ("Codertocat", "Looks good.", "reads")


def test_a_tag_is_not_taken_for_a_branch() -> None:
    assert context("push", payload("push") | {"ref": "refs/tags/main"})["branch"] == "refs/tags/main"


def test_a_branch_keeps_its_slashes() -> None:
    assert context("push", payload("push") | {"ref": "refs/heads/fix/it"})["branch"] == "fix/it"


def test_a_deleted_branch_is_told_without_a_commit() -> None:
    told = context("push", payload("push") | {"head_commit": None})
    assert "title" not in told
    assert told["author"] == "Codertocat"  # the pusher


def test_a_commit_message_is_not_cut() -> None:
    told = context("push", payload("push") | {"head_commit": {"message": "x" * 5000}})
    assert told["title"] == "x" * 5000


def test_a_deployment_without_a_target_links_to_its_log() -> None:
    value = payload("deployment_status.created")
    value["deployment_status"] |= {"target_url": "", "log_url": "https://logs.example"}
    assert context("deployment_status", value)["url"] == "https://logs.example"


def test_a_release_has_its_name_before_its_tag() -> None:
    value = payload("release.created")
    value["release"]["name"] = "Spring"
    assert context("release", value)["title"] == "Spring"


@pytest.mark.parametrize(("value", "title"), [({"action": "started"}, "started"), ({}, "watch")])
def test_any_other_event_is_told_by_its_action_or_its_name(value: dict[str, str], title: str) -> None:
    told = context("watch", value | {"repository": {"full_name": "o/r"}})
    assert told["title"] == title
    assert told["sender"] == "unknown"


def test_other_events_are_told_by_their_main_object_their_comment_or_their_alert() -> None:
    repository = {"repository": {"full_name": "o/r"}}
    job = {"html_url": "https://j", "head_branch": "fix", "conclusion": "failure", "run_id": 7}
    told = context("workflow_job", {"action": "completed", "workflow_job": job, **repository})
    assert (told["url"], told["branch"], told["conclusion"], told["runId"]) == ("https://j", "fix", "failure", 7)
    alert = {"number": 3, "html_url": "https://a", "state": "open"}
    told = context("dependabot_alert", {"action": "created", "alert": alert, **repository})
    assert (told["number"], told["url"], told["state"]) == (3, "https://a", "open")
    comment = {"body": "Why?", "html_url": "https://c", "user": {"login": "asks"}}
    told = context("commit_comment", {"action": "created", "comment": comment, **repository})
    assert (told["comment"], told["url"], told["commentAuthor"]) == ("Why?", "https://c", "asks")


@pytest.mark.parametrize(
    ("value", "branch"),
    [
        ({"ref": "fix", "ref_type": "branch"}, "fix"),
        ({"ref": "v1", "ref_type": "tag"}, None),
        ({"ref": "refs/heads/main"}, "main"),
        ({"ref": "refs/tags/v1"}, None),
    ],
)
def test_only_a_branchs_ref_is_taken_for_a_branch(value: dict[str, str], branch: str | None) -> None:
    assert context("create", value | {"repository": {"full_name": "o/r"}}).get("branch") == branch


def test_filters_know_which_files_a_push_changed_and_agents_are_not_told() -> None:
    commits = [
        {"added": ["new"], "modified": ["README.md"], "removed": []},
        {"added": [], "modified": ["README.md", 7], "removed": ["old"]},
        {"added": "odd"},
        None,
    ]
    said = say("push", payload("push") | {"commits": commits})
    assert isinstance(said, Event)
    assert said.facts == {"paths": ["new", "README.md", "old"]}
    assert not {"paths", "commits"} & said.context.keys()
    said = say("push", payload("push") | {"commits": [{"added": [str(n) for n in range(9000)]}]})
    assert isinstance(said, Event)
    assert said.facts == {"paths": [str(n) for n in range(3000)]}


def test_the_sender_and_the_number_are_at_hand_for_guards() -> None:
    said = say("issues", payload("issues.opened"))
    assert isinstance(said, Event)
    assert (said.sender, said.number) == ("Codertocat", 1)
    said = say("watch", {"repository": {"full_name": "o/r"}})
    assert isinstance(said, Event)
    assert (said.sender, said.number) == ("", None)


@pytest.mark.parametrize(("length", "told"), [(4000, "x" * 4000), (4001, "x" * 4000 + "...")])
def test_long_texts_are_cut_at_4000_characters(length: int, told: str) -> None:
    value = payload("issues.opened")
    value["issue"]["body"] = "x" * length
    assert context("issues", value)["body"] == told


@pytest.mark.parametrize("body", ["", None, 7, ["text"]])
def test_a_text_that_is_empty_or_no_text_is_left_out(body: Any) -> None:
    value = payload("issues.opened")
    value["issue"]["body"] = body
    assert "body" not in context("issues", value)


@pytest.mark.parametrize("number", ["1", 1.0, True, None, 10**30])
def test_a_number_that_is_none_or_too_large_to_store_is_left_out(number: Any) -> None:
    value = payload("issues.opened")
    value["issue"]["number"] = number
    assert "number" not in context("issues", value)


def test_odd_members_of_the_labels_are_skipped() -> None:
    value = payload("issues.opened")
    value["issue"]["labels"] = [{"name": "bug"}, "ui", None, {"name": 7}, {}, {"name": "docs"}]
    assert context("issues", value)["labels"] == ["bug", "docs"]


@pytest.mark.parametrize("labels", [None, "bug", {"name": "bug"}, []])
def test_an_issue_without_labels_has_an_empty_list(labels: Any) -> None:
    value = payload("issues.opened")
    value["issue"]["labels"] = labels
    assert context("issues", value)["labels"] == []


def test_text_is_told_as_a_database_can_hold_it() -> None:
    value = payload("issues.opened")
    value["issue"]["title"] = "a\x00b\ud800c"
    assert context("issues", value)["title"] == "a\ufffdb\ufffdc"


def test_the_time_of_receipt_is_told_in_utc() -> None:
    received_at = datetime(2026, 3, 19, 14, tzinfo=timezone(timedelta(hours=2)))
    body = (PAYLOADS / "push.json").read_bytes()
    said = GitHub().parse(replace(asked({"x-github-event": "push"}, body), received_at=received_at))
    assert isinstance(said, Event)
    assert said.context["timestamp"] == "2026-03-19T12:00:00.000Z"


@pytest.mark.parametrize("event", ["push", "ping"])
def test_the_id_of_the_delivery_is_kept_at_a_length_that_fits_its_column(event: str) -> None:
    said = say(event, payload("push"), **{"x-github-delivery": "72d3162e" * 100})
    assert said.external_id == "72d3162e" * 25


# What is ignored


def test_a_ping_is_ignored() -> None:
    assert reason("ping", payload("ping")) == "ping"


def test_an_event_of_no_repository_is_ignored() -> None:
    assert reason("organization", payload("organization.member_added")) == "no repository.full_name"


@pytest.mark.parametrize("value", [None, 1, "text", [], {}, {"repository": "o/r"}, {"repository": {"full_name": 1}}])
def test_json_that_names_no_repository_is_ignored(value: Any) -> None:
    assert reason("issues", value) == "no repository.full_name"


def test_a_request_without_an_event_is_ignored() -> None:
    assert GitHub().parse(asked({}, b"{}")) == Ignored("no X-GitHub-Event header")


@pytest.mark.parametrize("event", ["x" * 101, "two words", "<b>", "push\n"])
def test_a_header_that_names_no_event_is_ignored(event: str) -> None:
    assert reason(event, payload("push")) == "the X-GitHub-Event header does not name an event"


@pytest.mark.parametrize(("event", "name"), [(event, name) for event, shape in EVENTS.items() for name in shape.needs])
@pytest.mark.parametrize("value", [None, [], "text", 7])
def test_an_event_without_its_object_is_ignored(event: str, name: str, value: Any) -> None:
    whole = next(payload(known) for known in TOLD if known.partition(".")[0] == event)
    assert reason(event, whole | {name: value}) == f"no {name} in {event}"


def test_all_missing_objects_are_named() -> None:
    assert reason("issue_comment", {"repository": {"full_name": "o/r"}}) == "no issue and no comment in issue_comment"


# The body


def parse_bytes(body: bytes, content_type: str = "application/json") -> Event | Ignored:
    headers = {"x-github-event": "push", "content-type": content_type}
    return GitHub().parse(asked(headers, body))


@pytest.mark.parametrize("content_type", [FORM, f"{FORM}; charset=utf-8", "Application/X-WWW-Form-Urlencoded"])
def test_a_form_says_the_same_as_json(content_type: str) -> None:
    text = json.dumps(payload("push") | {"compare": "https://example/ä+b&c"}, ensure_ascii=False)
    form = urlencode({"payload": text}).encode()
    assert parse_bytes(form, content_type) == parse_bytes(text.encode())


def test_a_body_of_unknown_type_is_read_as_json() -> None:
    body = (PAYLOADS / "push.json").read_bytes()
    assert parse_bytes(body, "") == parse_bytes(body)


@pytest.mark.parametrize("body", [b"", b"a=b", b"payload=", b"payload", b"{}", b"\xff", b"payload=1" + b"&a=b" * 100])
def test_a_form_without_a_payload_is_a_bad_body(body: bytes) -> None:
    with pytest.raises(BadBody, match=r"^missing payload in form body$"):
        parse_bytes(body, FORM)


def test_a_form_whose_payload_is_not_json_is_a_bad_body() -> None:
    with pytest.raises(BadBody, match=r"^invalid JSON body$"):
        parse_bytes(b"payload=%7B", FORM)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"\xef\xbb\xbf{}",
        "{}".encode("utf-16"),
        b'{"a": NaN}',
        b"-Infinity",
        b"9" * 5000,
        b"[" * 200_000,
        b'{"a":' * 200_000,
    ],
    ids=["empty", "cut", "not UTF-8", "BOM", "UTF-16", "NaN", "infinity", "huge number", "deep list", "deep object"],
)
def test_what_is_not_json_is_a_bad_body(body: bytes) -> None:
    with pytest.raises(BadBody, match=r"^invalid JSON body$"):
        parse_bytes(body)


KEYS = sorted(
    {"action", "repository", "full_name", "sender", "login", "user", "number", "title", "name", "body", "html_url"}
    | {"labels", "head", "ref", "pull_requests", "head_branch", "conclusion", "author", "actor", "id", "head_commit"}
    | {name for shape in EVENTS.values() for name in shape.needs}
)
rough_text = st.text(st.characters(exclude_categories=()))  # with halves of characters
scalars = st.none() | st.booleans() | st.integers() | st.floats() | rough_text
anything = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=8)
)
events = st.sampled_from([*EVENTS, "ping", "star"])
names = st.sampled_from(["x-hub-signature-256", "x-github-event", "x-github-delivery", "content-type"])
any_headers = st.dictionaries(names, rough_text | events | st.sampled_from([FORM, FORGED]))


def assert_harmless(said: Event | Ignored) -> None:
    """JSON that every database can hold, and whose values are of the types that filters expect."""
    if isinstance(said, Ignored):
        return
    json.dumps(said.context, allow_nan=False)
    assert storable.json(said.context) == said.context
    for key, value in said.context.items():
        expected = {"labels": list, "number": int, "runId": int}.get(key, str)
        assert type(value) is expected


@settings(deadline=None)  # a busy machine is no failure
@given(events, anything)
def test_no_json_raises_anything_but_bad_body(event: str, value: Any) -> None:
    with suppress(BadBody):  # NaN and infinity
        assert_harmless(say(event, value))


@settings(deadline=None)  # a busy machine is no failure
@given(st.sampled_from(sorted(TOLD)), st.data())
def test_no_odd_value_inside_a_real_payload_raises_anything_but_bad_body(name: str, data: st.DataObject) -> None:
    value = inner = payload(name)
    key = data.draw(st.sampled_from(sorted(inner)))
    while isinstance(inner[key], dict) and inner[key] and data.draw(st.booleans()):
        inner = inner[key]
        key = data.draw(st.sampled_from(sorted(inner)))
    inner[key] = data.draw(anything)
    with suppress(BadBody):
        assert_harmless(say(name.partition(".")[0], value))


@settings(deadline=None)  # a busy machine is no failure
@given(any_headers, st.binary())
def test_no_bytes_and_headers_raise_anything_but_bad_body(headers: dict[str, str], body: bytes) -> None:
    with suppress(BadBody):
        assert_harmless(GitHub().parse(asked(headers, body)))


# The signature

# of one line, and without blanks around it, which do not count; an HMAC's key may end in zeros or not
secret_text = st.text(st.characters(exclude_categories=("Cc", "Cs", "Zs", "Zl", "Zp")), min_size=1)


def signed_by(header: str, body: bytes, secrets: dict[str, str]) -> str | None:
    return GitHub().signed_by(asked({"x-hub-signature-256": header}, body), secrets)


def test_the_secret_that_signed_is_named() -> None:
    secrets = {"old": "one", "new": "two"}
    assert signed_by(sign(b"{}", "one"), b"{}", secrets) == "old"
    assert signed_by(sign(b"{}", "two"), b"{}", secrets) == "new"


def test_the_documented_example_of_github_verifies() -> None:
    header = "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"
    assert signed_by(header, b"Hello, World!", {"default": "It's a Secret to Everybody"}) == "default"


def test_nothing_is_signed_without_a_header_or_without_secrets() -> None:
    assert GitHub().signed_by(asked({}, b"{}"), {"default": "one"}) is None
    assert signed_by(sign(b"{}", "one"), b"{}", {}) is None


@pytest.mark.parametrize("secret", ["", " ", "\n\n"])
def test_an_empty_secret_signs_nothing(secret: str) -> None:
    assert signed_by(sign(b"{}", ""), b"{}", {"default": secret}) is None


def test_an_old_and_a_new_secret_are_both_good_while_they_are_changed() -> None:
    secrets = {"default": "new\r\n\n  old \n"}
    assert [signed_by(sign(b"{}", secret), b"{}", secrets) for secret in ("new", "old")] == ["default"] * 2
    assert signed_by(sign(b"{}", "new\r\n\n  old"), b"{}", secrets) is None


@pytest.mark.parametrize(
    "change", [str.upper, lambda it: it[7:], lambda it: it[:-1], lambda it: it + "0", lambda it: "é"]
)
def test_a_malformed_signature_is_none(change: Any) -> None:
    assert signed_by(change(sign(b"{}", "one")), b"{}", {"default": "one"}) is None


@settings(deadline=None)  # a busy machine is no failure
@given(st.binary(), secret_text, st.binary(), secret_text)
def test_only_the_same_secret_over_the_same_bytes_verifies(body: bytes, secret: str, other: bytes, wrong: str) -> None:
    header = sign(body, secret)
    assert signed_by(header, body, {"wrong": wrong, "right": secret}) == ("wrong" if wrong == secret else "right")
    assert other == body or signed_by(header, other, {"right": secret}) is None
    assert wrong == secret or signed_by(header, body, {"wrong": wrong}) is None


@settings(deadline=None)  # a busy machine is no failure
@given(any_headers, st.binary(), st.dictionaries(st.text(), rough_text))
@example({}, b"", {"default": "\ud800"})
def test_asking_who_signed_never_raises(headers: dict[str, str], body: bytes, secrets: dict[str, str]) -> None:
    assert GitHub().signed_by(asked(headers, body), secrets) is None
    assert signed_by(FORGED, body, secrets) is None


def test_parse_takes_a_signed_request_the_whole_way() -> None:
    body = (PAYLOADS / "issues.opened.json").read_bytes()
    headers = {"x-github-event": "issues", "x-hub-signature-256": sign(body, "one")}
    assert parse("github", asked(headers, body), {"default": "one"}) == say("issues", payload("issues.opened"))


def test_parse_refuses_what_nobody_signed_before_it_reads_it() -> None:
    with pytest.raises(BadSignature, match=r"^signature validation failed$"):
        parse("github", asked({"x-github-event": "issues"}, b"not JSON"), {"default": "one"})


def test_github_is_a_provider() -> None:
    assert PROVIDERS["github"].secret_credential == "github_webhook_secret"
