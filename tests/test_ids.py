from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from agents.ids import first_id, new_id


def test_ids_made_one_after_another_sort_in_that_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also within a millisecond, and over its end."""
    moments = iter(range(1_700_000_000_000_000_000, 1_700_000_000_002_000_000, 1_000))
    monkeypatch.setattr(time, "time_ns", lambda: next(moments))
    ids = [new_id("run") for _ in range(2000)]
    assert ids == sorted(ids)
    assert {len(one) for one in ids} == {len("run_") + 28}


def test_an_id_is_not_below_the_first_of_its_time() -> None:
    now = datetime.now(UTC)
    assert first_id("dlv", now - timedelta(seconds=1)) <= new_id("dlv") < first_id("dlv", now + timedelta(minutes=1))
