"""Which events start an agent, and what is said about those that do not."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents.manifest import filters as written
from webhooks.matching import FILTERS, Asked, Filters, Index, Looked, explain, matches
from webhooks.providers import PROVIDERS
from webhooks.providers.base import Event, Request
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
PUSH = {"event": "push", "repo": "acme/shop", "branch": "main", "sender": "dependabot[bot]"}


def event_of(context: dict[str, Any], **facts: Any) -> Event:
    return Event(event=context.get("event", "push"), context=context, facts=facts)


def why(context: dict[str, Any], provider: str = "github", **filters: Any) -> list[str]:
    """A sentence for each filter that the event did not pass."""
    event = event_of(context)
    failed = [verdict.sentence for verdict in explain(provider, filters, event) if not verdict.passed]
    assert matches(provider, filters, event) is (not failed)
    assert Index(provider, [("it", filters)]).matching(event) == ([] if failed else ["it"])
    return failed


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
        {"senders": ["cem", "ann"]},
        {"branches": ["main"]},
        {"events": ["issues"], "conclusions": ["failure"]},
        {"events": ["issues"], "actions": ["labeled"], "labels": ["bug"], "orgs": ["acme"], "author": "bob"},
        {"events": [], "actions": [], "repos": [], "orgs": [], "labels": [], "branches": [], "conclusions": []},
        {"not_labels": ["wip"], "not_senders": "bob", "not_org": "other", "not_repos": ["acme/sho"]},
        {"not_branches": ["main"], "not_conclusions": ["success"], "not_paths": ["**"]},  # it has none of these
        {"labels": ["bug"], "not_labels": []},
    ],
    ids=str,
)
def test_an_event_passes(filters: dict[str, Any]) -> None:
    assert why(ISSUE, **filters) == []


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
        ({"senders": ["bob"]}, "senders: none of bob in ann"),
        ({"conclusions": ["failure"]}, "conclusions: none of failure, the event has none"),
        ({"repos": ["acme/shop"], "conclusions": ["x"]}, "conclusions: none of x, the event has none"),
        ({"events": [], "conclusions": ["x"]}, "conclusions: none of x, the event has none"),
        ({"not_labels": ["wip", "ui"]}, "not_labels: one of wip, ui in bug, ui"),
        ({"not_events": "issues"}, "not_events: one of issues in issues"),
        ({"not_orgs": ["a"], "not_org": "acme"}, "not_orgs: one of a, acme in acme"),
        ({"not_senders": ["ann"]}, "not_senders: one of ann in ann"),
        ({"paths": ["docs/**"]}, "paths: none of docs/**, the event has none"),
        ({"paths": ["/"]}, "paths: '/' is no pattern of paths: write docs/** or *.py"),
        ({"not_paths": ["!"]}, "not_paths: '!' is no pattern of paths: write docs/** or *.py"),
        ({"teams": ["core"]}, "teams: github has no such filter"),
        ({"not_teams": ["core"]}, "not_teams: github has no such filter"),
        ({"repository": "acme/shop"}, "repository: github has no such filter"),
        ({"match.action": "labeled"}, "match.action: github has no such filter"),
        ({"labels.0": "bug"}, "labels.0: github has no such filter"),
    ],
    ids=str,
)
def test_an_event_fails_with_a_sentence(filters: dict[str, Any], sentence: str) -> None:
    assert why(ISSUE, **filters) == [sentence]


def test_every_filter_is_told_with_what_it_wanted_and_what_the_event_had() -> None:
    filters: Filters = {"events": ["push"], "labels": ["bug"], "not_author": "ann"}
    verdicts = explain("github", filters, event_of(ISSUE))
    assert [(verdict.filter, verdict.wanted, verdict.had, verdict.passed) for verdict in verdicts] == [
        ("events", ("push",), ("issues",), False),
        ("labels", ("bug",), ("bug", "ui"), True),
        ("not_author", ("ann",), ("bob",), True),
    ]
    assert [verdict.sentence for verdict in verdicts] == [
        "events: none of push in issues",
        "labels: one of bug in bug, ui",
        "not_author: none of ann in bob",
    ]


@pytest.mark.parametrize("name", ["actions", "labels", "assignee", "author", "senders"])
def test_an_event_that_lacks_what_is_asked_for_fails(name: str) -> None:
    bare = {"event": "push", "repo": "acme/shop", "labels": [], "sender": "unknown"}
    assert why(bare, "github", **{name: ["unknown"]}) == [f"{name}: none of unknown, the event has none"]
    assert why(bare, "github", **{f"not_{name}": ["unknown"]}) == []


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
    assert why({"event": "push"}, "gitea") == ["no filter is known for gitea"]


# Pushes


@pytest.mark.parametrize(
    ("filters", "passes"),
    [
        ({"paths": ["docs/**"]}, True),
        ({"paths": "docs/"}, True),
        ({"paths": "/docs/"}, True),
        ({"paths": ["docs"]}, False),  # a name, not a folder
        ({"paths": ["*.py"]}, True),
        ({"paths": ["/*.py"]}, False),
        ({"paths": ["**/deep/*.py"]}, True),
        ({"paths": ["src/{deep,flat}/**"]}, True),
        ({"paths": ["*.rs", "docs/*.md"]}, True),
        ({"paths": ["DOCS/**", "lib/**"]}, False),
        ({"paths": ["**", "!docs/**"]}, True),
        ({"paths": ["!docs/**", "!*.py"]}, False),
        ({"paths": ["*.py", "!src/"]}, False),
        ({"not_paths": ["lib/**"]}, True),
        ({"not_paths": ["docs/**"]}, False),
    ],
    ids=str,
)
def test_a_push_is_asked_for_the_paths_it_changes(filters: dict[str, Any], passes: bool) -> None:
    assert matches("github", filters, event_of(PUSH, paths=["docs/a.md", "src/deep/b.py"])) is passes


def test_a_push_that_changes_nothing_passes_no_paths() -> None:
    push = event_of(PUSH, paths=[])
    assert not matches("github", {"paths": ["**"]}, push)
    assert matches("github", {"not_paths": ["**"]}, push)


def test_of_many_paths_some_are_told() -> None:
    [verdict] = explain("github", {"paths": ["docs/**"]}, event_of(PUSH, paths=[f"a/{n}" for n in range(3000)]))
    assert len(verdict.had) == 3000
    assert verdict.sentence.endswith(" in a/0, a/1, a/2, a/3, a/4, a/5, a/6, a/7, a/8, a/9 and 2990 more")


def test_a_real_push_is_asked_for_its_paths() -> None:
    push = real_event("push", commits=[{"added": ["docs/a.md"], "removed": ["b.py"]}])
    assert matches("github", {"events": ["push"], "paths": ["docs/**"]}, push)
    assert not matches("github", {"events": ["push"], "not_paths": ["*.py"]}, push)


# Other providers


@pytest.mark.parametrize(
    ("provider", "context", "passing", "failing"),
    [
        ("sentry", {"event": "issue", "action": "created"}, {"resources": ["issue"]}, {"resources": ["error"]}),
        ("sentry", {"event": "issue", "action": "created"}, {"actions": ["created"]}, {"not_actions": "created"}),
        ("linear", {"event": "issues", "repo": "org-1"}, {"organizations": ["org-1"]}, {"organizations": ["org"]}),
        ("linear", {"event": "issues", "labels": ["bug"]}, {"labels": "bug"}, {"not_labels": ["bug"]}),
        ("linear", {"event": "issues", "assignee": "a@b.c"}, {"assignee": "a@b.c"}, {"author": "a@b.c"}),
        ("mintlify", {"event": "build", "repo": "docs"}, {"projects": ["docs"]}, {"projects": ["other"]}),
        ("mintlify", {"event": "build", "repo": "docs"}, {"repos": ["docs"]}, {"repos": ["other"]}),
        ("mintlify", {"event": "build", "branch": "main"}, {"branches": ["main"]}, {"branches": ["dev"]}),
        ("mintlify", {"event": "build", "conclusion": "failure"}, {"conclusions": "failure"}, {"conclusions": "x"}),
        ("discord", {"event": "message_component", "repo": "g"}, {"guilds": ["g"]}, {"guilds": ["h"]}),
        ("discord", {"event": "message_component", "branch": "c"}, {"channels": ["c"]}, {"channels": ["d"]}),
        ("discord", {"event": "application_command", "action": "go"}, {"commands": ["go"]}, {"commands": ["no"]}),
        ("discord", {"event": "autocomplete", "action": "go"}, {"commands": ["go"]}, {"not_commands": ["go"]}),
        ("discord", {"event": "modal_submit", "action": "x"}, {"commands": ["go"], "channels": "c"}, {"guilds": "g"}),
        ("slack", {"event": "message", "channel": "C1"}, {"channels": ["C1"]}, {"channels": ["C2"]}),
        ("slack", {"event": "team_join", "repo": "T1"}, {"team_ids": ["T1"]}, {"channels": ["C1"]}),
        ("twitter", {"event": "follow_events", "repo": "9"}, {"users": ["9"]}, {"users": ["8"]}),
        ("twitter", {"event": "follow_events", "repo": "9"}, {"repos": ["9"]}, {"events": ["x"]}),
        ("gitlab", {"event": "push", "repo": "a/b/c"}, {"repos": ["a/b/c"]}, {"repos": ["a/b"]}),
        ("gitlab", {"event": "push", "repo": "a/b/c"}, {"orgs": ["a"]}, {"orgs": ["b"]}),
        ("gitlab", {"event": "push", "repo": "a/b/c"}, {"org": "a/b"}, {"org": "a/b/c"}),
        ("gitlab", {"event": "pipeline", "conclusion": "failure"}, {"conclusions": "failure"}, {"conclusions": "x"}),
        ("generic", {"event": "invoice", "sender": "ann"}, {"senders": "ann"}, {"not_senders": "ann"}),
        ("hmac", {"event": "invoice", "labels": ["a"]}, {"labels": ["a"]}, {"labels": ["b"]}),
        ("standardwebhooks", {"event": "invoice", "action": "paid"}, {"actions": "paid"}, {"actions": "void"}),
        ("test", {"event": "test", "repo": "r"}, {"repos": ["r"], "events": "test"}, {"actions": ["x"]}),
    ],
    ids=str,
)
def test_other_providers_are_asked_what_theirs_know(
    provider: str, context: dict[str, Any], passing: dict[str, Any], failing: dict[str, Any]
) -> None:
    assert why(context, provider, **passing) == []
    assert len(why(context, provider, **failing)) == 1


@pytest.mark.parametrize(
    ("filters", "passes"),
    [
        ({"match.data.object.currency": "eur"}, True),
        ({"match.data.object.currency": ["usd", "eur"]}, True),
        ({"match.data.object.currency": "EUR"}, False),
        ({"match.data.object.amount": "2000"}, True),
        ({"match.data.live": "true"}, True),
        ({"match.data.tags": "b"}, True),
        ({"match.data.tags.0": "b"}, False),
        ({"match.data.none": "null"}, False),
        ({"match.data.nowhere": "x"}, False),
        ({"not_match.data.nowhere": "x"}, True),
        ({"not_match.data.tags": "a"}, False),
        ({"match": "x"}, False),
    ],
    ids=str,
)
@pytest.mark.parametrize("provider", ["generic", "hmac", "standardwebhooks"])
def test_a_body_of_anybody_is_asked_by_path(provider: str, filters: dict[str, Any], passes: bool) -> None:
    body = {
        "type": "invoice",
        "data": {"object": {"currency": "eur", "amount": 2000}, "live": True, "tags": ["a", "b"], "none": None},
    }
    said = PROVIDERS[provider].parse(Request(headers={}, body=json.dumps(body).encode(), received_at=datetime.now(UTC)))
    assert isinstance(said, Event)
    assert matches(provider, filters, said) is passes


def test_what_can_be_written_is_what_can_be_asked() -> None:
    assert {name: set(known) for name, known in FILTERS.items()} == {
        name: set(known | written.EVERYWHERE) for name, known in written.FILTERS.items()
    }
    assert set(FILTERS) == set(PROVIDERS)


# The triggers of the public agents (spec/action-llama.md 13), and the real events meant for them


def real_event(name: str, **changes: Any) -> Event:
    body = json.loads((PAYLOADS / f"{name}.json").read_text()) | changes
    headers = {"x-github-event": name.partition(".")[0]}
    said = GitHub().parse(Request(headers=headers, body=json.dumps(body).encode(), received_at=datetime.now(UTC)))
    assert isinstance(said, Event)
    return said


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
    assert [verdict.sentence for verdict in explain("github", filters, real_event(name)) if not verdict.passed] == []


# Many triggers


values = st.none() | st.integers() | st.text(max_size=3) | st.sampled_from(["a", "b", "a/b"])
names = [*FILTERS["github"], "unknown"]
keys = st.sampled_from([*names, *(f"not_{name}" for name in names), "match.a"])
some_filters: st.SearchStrategy[dict[str, Any]] = st.dictionaries(
    keys, values | st.lists(values, max_size=3) | st.lists(st.just({}))
)
contexts = st.dictionaries(
    st.sampled_from(["action", "repo", "labels", "assignee", "author", "branch", "conclusion", "sender"]),
    values | st.lists(values, max_size=3),
)


@settings(deadline=None)  # a busy machine is no failure
@given(st.lists(some_filters, max_size=6), contexts, st.lists(st.sampled_from(["a", "a/b", ""]), max_size=2))
def test_an_index_finds_what_matches_and_nothing_stored_raises(many: list[Any], context: Any, paths: list[str]) -> None:
    event = Event(event="push", context=context, facts={"paths": paths})
    each = [all(verdict.passed for verdict in explain("github", filters, event)) for filters in many]
    assert [matches("github", filters, event) for filters in many] == each
    assert Index("github", list(enumerate(many))).matching(event) == [n for n, passed in enumerate(each) if passed]


@settings(deadline=None)  # a busy machine is no failure
@given(st.dictionaries(keys, st.lists(values, max_size=3)), contexts, keys, st.lists(values, min_size=1))
def test_one_more_filter_never_starts_more(filters: Any, context: Any, key: str, more: list[Any]) -> None:
    if key in {"events", "org", "orgs"} or filters.get(key):
        return  # `events` says what `conclusions` are about; more values of one filter are alternatives
    before, after = ({**filters, key: wanted} for wanted in ([], more))
    event = event_of(context)
    assert matches("github", before, event) or not matches("github", after, event)


def test_of_thousands_of_triggers_few_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counted, because a busy machine makes any time long."""
    asked = []
    passes = Looked.passes

    def counting(looked: Looked, one: Asked) -> bool:
        asked.append(one)
        return passes(looked, one)

    monkeypatch.setattr(Looked, "passes", counting)
    index = Index(
        "github",
        [
            (number, {"events": ["issues"], "repos": [f"acme/{number // 3}"], "labels": [f"label-{number % 5}"]})
            for number in range(3000)
        ],
    )

    found = index.matching(event_of({"event": "issues", "repo": "acme/1", "labels": ["label-3"]}))

    assert found == [3]
    assert 3 <= len(asked) <= 9
