"""Which webhooks a waiting run goes on with."""

from __future__ import annotations

from typing import Any

import pytest

from runs.models import TriggerWait
from webhooks.models import Source
from webhooks.providers.base import Event
from webhooks.waits import ABSENT, Arrived, at, same

BODY = b'{"action": "created", "issue": {"number": 7, "user": {"login": "bob"}}}'


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ({}, True),
        ({"source": "github"}, True),
        ({"source": "hooks"}, True),
        ({"source": "sentry"}, False),
        ({"event": "issue_comment"}, True),
        ({"event": "push"}, False),
        ({"match": {"number": 7}}, True),
        ({"match": {"number": "7"}}, True),
        ({"match": {"number": 8}}, False),
        ({"match": {"issue.user.login": "bob", "action": "created"}}, True),
        ({"match": {"issue.user.login": "eve"}}, False),
        ({"match": {"issue.nothing": None}}, False),
    ],
)
def test_an_event_fits_if_all_that_is_asked_for_is_so(wanted: dict[str, Any], fits: bool) -> None:
    event = Event(event="issue_comment", context={"number": 7, "action": "created"})
    arrived = Arrived("github", [Source(name="hooks")], event, BODY)
    assert arrived.fits(TriggerWait(**wanted)) is fits


@pytest.mark.parametrize(
    ("path", "found"),
    [("a", {"b": [1, {"c": None}]}), ("a.b.0", 1), ("a.b.1.c", None), ("a.b.2", ABSENT), ("a.x", ABSENT), ("", ABSENT)],
)
def test_a_dotted_path_leads_through_members_and_items(path: str, found: Any) -> None:
    assert at(path, {"a": {"b": [1, {"c": None}]}}) == found


@pytest.mark.parametrize(
    ("value", "wanted", "equal"),
    [
        (7, 7, True),
        (7, "7", True),
        (True, "true", True),
        ("open", "Open", False),
        (None, "", False),
        (ABSENT, None, False),
        ([1], [1], True),
    ],
)
def test_values_are_equal_or_written_alike(value: Any, wanted: Any, equal: bool) -> None:
    assert same(value, wanted) is equal
