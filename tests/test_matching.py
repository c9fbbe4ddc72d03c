"""Which events start an agent, and what is said about those that do not."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from webhooks.matching import FILTERS, explain, matches
from webhooks.providers.base import Event
from webhooks.providers.github import GitHub

PAYLOADS = Path(__file__).parent / "data" / "github"
ISSUE = {
    "source": "github",
    "event": "issues",
    "action": "labeled",
    "repo": "acme/shop",
    "sender": "ann",
    "number": 7,
    "author": "bob",
    "assignee": "cem",
    "labels": ["bug", "ui"],
}
BUILD = {"event": "workflow_run", "action": "completed", "repo": "acme/shop", "branch": "main", "conclusion": "failure"}


def why(context: dict[str, Any], **filters: Any) -> list[str]:
    return explain("github", filters, context["event"], context)


@pytest.mark.parametrize(
    "filters",
    [
        {},
        {"events": ["issues"]},
        {"events": ["push", "issues"]},
        {"events": "issues"},
        {"actions": ["opened", "labeled"]},
        {"repos": ["acme/shop"]},
        {"orgs": ["acme"]},
        {"org": "acme"},
        {"orgs": ["other"], "org": "acme"},
        {"orgs": ["acme"], "org": "other"},
        {"labels": ["ready", "ui"]},
        {"assignee": "cem"},
        {"author": "bob"},
        {"branches": ["main"]},
        {"events": ["issues"], "conclusions": ["failure"]},
        {"events": ["issues"], "actions": ["labeled"], "labels": ["bug"], "orgs": ["acme"], "author": "bob"},
        {"events": [], "actions": [], "repos": [], "orgs": [], "labels": [], "branches": [], "conclusions": []},
    ],
    ids=str,
)
def test_an_event_passes(filters: dict[str, Any]) -> None:
    assert why(ISSUE, **filters) == []
    assert matches("github", filters, "issues", ISSUE)


@pytest.mark.parametrize(
    ("filters", "sentence"),
    [
        ({"events": ["push", "release"]}, "events: none of push, release in issues"),
        ({"events": ["Issues"]}, "events: none of Issues in issues"),
        ({"actions": ["opened"]}, "actions: none of opened in labeled"),
        ({"repos": ["acme/sho"]}, "repos: none of acme/sho in acme/shop"),
        ({"repos": ["Acme/Shop"]}, "repos: none of Acme/Shop in acme/shop"),
        ({"orgs": ["acm"]}, "orgs: none of acm in acme"),
        ({"orgs": ["a"], "org": "b"}, "orgs: none of a, b in acme"),
        ({"labels": ["ready-for-dev"]}, "labels: none of ready-for-dev in bug, ui"),
        ({"assignee": "ann"}, "assignee: none of ann in cem"),
        ({"author": ""}, "author: none of  in bob"),
        ({"conclusions": ["failure"]}, "conclusions: none of failure, the event has none"),
        ({"repos": ["acme/shop"], "conclusions": ["x"]}, "conclusions: none of x, the event has none"),
        ({"events": [], "conclusions": ["x"]}, "conclusions: none of x, the event has none"),
        ({"teams": ["core"]}, "teams: github has no such filter"),
        ({"repository": "acme/shop"}, "repository: github has no such filter"),
    ],
    ids=str,
)
def test_an_event_fails_with_a_sentence(filters: dict[str, Any], sentence: str) -> None:
    assert why(ISSUE, **filters) == [sentence]
    assert not matches("github", filters, "issues", ISSUE)


def test_every_filter_that_failed_is_told() -> None:
    assert why(ISSUE, events=["push"], labels=["bug"], author="ann") == [
        "events: none of push in issues",
        "author: none of ann in bob",
    ]


@pytest.mark.parametrize("name", ["actions", "labels", "assignee", "author"])
def test_an_event_that_lacks_what_is_asked_for_fails(name: str) -> None:
    bare = {"event": "push", "repo": "acme/shop", "labels": []}
    assert why(bare, **{name: ["x"]}) == [f"{name}: none of x, the event has none"]


@pytest.mark.parametrize(("branch", "passes"), [("main", True), ("dev", False), (None, True)])
def test_branches_are_asked_only_of_events_that_have_one(branch: str | None, passes: bool) -> None:
    context = {"event": "push", "repo": "acme/shop"} | ({"branch": branch} if branch else {})
    assert (why(context, branches=["main"]) == []) is passes


def test_conclusions_alone_select_the_events_that_have_one() -> None:
    assert why(BUILD, conclusions=["failure", "timed_out"]) == []
    assert why(BUILD | {"conclusion": "success"}, conclusions=["failure"]) == [
        "conclusions: none of failure in success"
    ]
    assert why(ISSUE, conclusions=["failure"]) != []


def test_an_unknown_provider_matches_nothing() -> None:
    assert explain("gitlab", {}, "push", {}) == ["no filter is known for gitlab"]


# The triggers of the public agents (spec/action-llama.md 13), and the real events meant for them


@pytest.mark.parametrize(
    ("name", "filters"),
    [
        ("issues.labeled", {"events": ["issues"], "actions": ["labeled"], "labels": ["bug"], "orgs": ["Codertocat"]}),
        ("issue_comment.created", {"events": ["issue_comment"], "actions": ["created"], "author": "Codertocat"}),
        ("check_suite.completed", {"events": ["check_suite"], "actions": ["completed"], "orgs": ["Codertocat"]}),
        ("check_suite.completed", {"branches": ["changes"], "conclusions": ["success"]}),
        ("workflow_run.completed", {"events": ["workflow_run"], "conclusions": ["success"], "branches": ["master"]}),
        ("deployment_status.created", {"events": ["deployment_status"]}),
        ("pull_request.opened", {"repos": ["Codertocat/Hello-World"], "labels": ["bug"], "branches": ["changes"]}),
        ("push", {"events": ["push"], "branches": ["main", "master"]}),
    ],
)
def test_a_real_event_passes_the_filters_meant_for_it(name: str, filters: dict[str, Any]) -> None:
    headers = {"x-github-event": name.partition(".")[0]}
    said = GitHub().parse(headers, (PAYLOADS / f"{name}.json").read_bytes(), received_at=datetime.now(UTC))
    assert isinstance(said, Event)
    assert explain("github", filters, said.event, said.context) == []


values = st.none() | st.integers() | st.text(max_size=3) | st.sampled_from(["a", "b", "a/b"])
keys = st.sampled_from([*FILTERS["github"], "org", "unknown"])
contexts = st.dictionaries(
    st.sampled_from(["action", "repo", "labels", "assignee", "author", "branch", "conclusion"]),
    values | st.lists(values, max_size=3),
)


@settings(deadline=None)  # a busy machine is no failure
@given(st.dictionaries(keys, values | st.lists(values, max_size=3) | st.lists(st.just({}))), contexts)
def test_no_stored_filter_and_no_context_raises(filters: Any, context: Any) -> None:
    assert matches("github", filters, "push", context) is (explain("github", filters, "push", context) == [])


@settings(deadline=None)  # a busy machine is no failure
@given(st.dictionaries(keys, st.lists(values, max_size=3)), contexts, keys, st.lists(values, min_size=1))
def test_one_more_filter_never_starts_more(filters: Any, context: Any, key: str, more: list[Any]) -> None:
    if key in {"events", "org", "orgs"} or filters.get(key):
        return  # `events` says what `conclusions` are about; more values of one filter are alternatives
    before, after = ({**filters, key: wanted} for wanted in ([], more))
    assert matches("github", before, "push", context) or not matches("github", after, "push", context)
