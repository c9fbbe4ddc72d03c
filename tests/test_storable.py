"""What goes into a database is what every database can hold, and nothing else of it is changed."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agents import storable

plain = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=10)
anything = st.text(st.characters(exclude_categories=[]), max_size=10)
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)


def values(text: st.SearchStrategy[str], leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        st.none() | st.booleans() | leaves | text,
        lambda children: st.lists(children, max_size=4) | st.dictionaries(text, children, max_size=4),
        max_leaves=12,
    )


@settings(deadline=None)
@given(values(plain, numbers))
def test_what_can_be_stored_is_not_changed(value: Any) -> None:
    assert storable.json(value) == value


@settings(deadline=None)
@given(values(anything, numbers | st.floats()))
def test_whatever_it_is_given_can_be_stored(value: Any) -> None:
    stored = json.dumps(storable.json(value), allow_nan=False, ensure_ascii=False)
    stored.encode()
    assert "\0" not in stored
    assert "\\u0000" not in stored.replace("\\\\", "")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("a\0b", "a�b"),
        ("half \ud83d", "half �"),
        ("other half \ude00", "other half �"),
        ("whole \U0001f600", "whole \U0001f600"),
        ("line\r\n\ttab \x1b[0m \x7f \x85", "line\r\n\ttab \x1b[0m \x7f \x85"),
    ],
)
def test_only_what_no_database_takes_is_replaced(text: str, expected: str) -> None:
    assert storable.text(text) == expected


def test_numbers_that_json_does_not_know_become_null() -> None:
    assert storable.json([math.nan, math.inf, -math.inf, 1.5, True, 2**70]) == [None, None, None, 1.5, True, 2**70]


def test_keys_become_text_and_tuples_lists() -> None:
    assert storable.json({"a\0": (1, {2: "\0"})}) == {"a�": [1, {"2": "�"}]}
