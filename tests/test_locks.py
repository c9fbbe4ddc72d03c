"""Locks: who has what, until when, who is told what, and that nobody ever has it beside another."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.test import Client
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agents import clock
from agents.redaction import NOTHING_SECRET
from runs import lifecycle, lock_table, locks, queue
from runs.leases import Lease
from runs.lock_table import Ask, Holder
from runs.models import Attempt, CallState, Lock, LockWait, Run, Status, ToolCall, WaitReason
from tests.at_work import at_work, begun, name_of
from tests.conftest import DrivenClock, DrivenWorker
from tests.making import make_agent, submit

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgresql]

GITHUB = "github://acme/app/issues/1"


def ms(at: datetime) -> int:
    return round(at.timestamp() * 1000)


# --- acquire, release, heartbeat ----------------------------------------------------------------------------------


def test_a_free_lock_is_had_until_its_agents_time_is_over(driven_clock: DrivenClock) -> None:
    attempt = at_work(lock_seconds=90)
    driven_clock.stand_at(clock.now())
    answer = locks.acquire(attempt, GITHUB)
    assert (answer.status, answer.body) == (200, {"ok": True, "resourceKey": GITHUB})
    [lock] = Lock.objects.all()
    assert (lock.holder, lock.attempt_id) == (name_of(attempt), attempt.pk)
    assert lock.expires_at - lock.held_since == timedelta(seconds=90)


def test_a_lock_of_another_is_refused_with_its_holder_and_its_time() -> None:
    mine, other = at_work(), at_work("other")
    assert locks.acquire(mine, GITHUB).ok
    [lock] = Lock.objects.all()
    answer = locks.acquire(other, GITHUB)
    assert answer.status == 409
    assert answer.body == {"ok": False, "holder": name_of(mine), "heldSince": ms(lock.held_since)}


def test_another_run_of_the_same_agent_is_another() -> None:
    first, second = at_work(), at_work()
    assert locks.acquire(first, GITHUB).ok
    assert locks.acquire(second, GITHUB).body["holder"] == name_of(first)


def test_getting_it_again_begins_both_times_anew(driven_clock: DrivenClock) -> None:
    attempt = at_work()
    locks.acquire(attempt, GITHUB)
    before = Lock.objects.get()
    driven_clock.forward(1000)
    assert locks.acquire(attempt, GITHUB).ok
    after = Lock.objects.get()
    assert after.held_since - before.held_since >= timedelta(seconds=1000)
    assert after.expires_at - after.held_since == timedelta(seconds=1800)


def test_one_that_has_run_out_is_anybodys(driven_clock: DrivenClock) -> None:
    mine, other = at_work(), at_work("other")
    locks.acquire(mine, GITHUB, seconds=60)
    driven_clock.forward(59)
    assert locks.acquire(other, GITHUB).status == 409
    driven_clock.forward(2)
    assert locks.acquire(other, GITHUB).ok
    assert Lock.objects.get().holder == name_of(other)
    assert locks.release(mine, GITHUB).body == {"ok": False, "reason": f"held by {name_of(other)}"}


def test_release_frees_ones_own_and_nothing_else() -> None:
    mine, other = at_work(), at_work("other")
    locks.acquire(mine, GITHUB)
    refused = locks.release(other, GITHUB)
    assert (refused.status, refused.body) == (409, {"ok": False, "reason": f"held by {name_of(mine)}"})
    assert locks.release(mine, GITHUB).body == {"ok": True}
    again = locks.release(mine, GITHUB)
    assert (again.status, again.body) == (404, {"ok": False, "reason": "lock not found"})
    assert not Lock.objects.exists()


def test_what_has_run_out_is_not_found(driven_clock: DrivenClock) -> None:
    attempt = at_work()
    locks.acquire(attempt, GITHUB, seconds=10)
    driven_clock.forward(11)
    assert locks.release(attempt, GITHUB).status == 404
    assert locks.heartbeat(attempt, GITHUB).status == 404
    assert locks.held_by(attempt).body == []


def test_a_heartbeat_moves_the_end_and_nothing_else(driven_clock: DrivenClock) -> None:
    mine, other = at_work(), at_work("other")
    driven_clock.stand_at(clock.now())
    locks.acquire(mine, GITHUB)
    since = Lock.objects.get().held_since
    driven_clock.forward(100)
    assert locks.heartbeat(mine, GITHUB, seconds=60).body == {
        "ok": True,
        "expiresAt": ms(clock.now() + timedelta(seconds=60)),
    }
    assert Lock.objects.get().held_since == since
    assert locks.heartbeat(other, GITHUB).body == {"ok": False, "reason": f"held by {name_of(mine)}"}


def test_the_list_has_ones_own_only() -> None:
    mine, other = at_work(), at_work("other")
    locks.acquire(mine, "a")
    locks.acquire(other, "b")
    locks.acquire(mine, "c")
    shown = locks.held_by(mine).body
    assert [lock["resourceKey"] for lock in shown] == ["a", "c"]
    assert set(shown[0]) == {"resourceKey", "holder", "heldSince", "expiresAt"}
    assert shown[0]["expiresAt"] - shown[0]["heldSince"] == 1_800_000


def test_an_agent_may_be_kept_to_one_lock() -> None:
    attempt = at_work(one_lock=True)
    assert locks.acquire(attempt, "a").ok
    refused = locks.acquire(attempt, "b")
    assert (refused.status, refused.body) == (409, {"ok": False, "reason": "already holding lock on a"})
    assert locks.acquire(attempt, "a").ok
    locks.release(attempt, "a")
    assert locks.acquire(attempt, "b").ok


def test_nobody_hoards_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock_table, "MOST", 3)
    attempt = at_work()
    answers = [locks.acquire(attempt, f"key {number}") for number in range(4)]
    assert [answer.status for answer in answers] == [200, 200, 200, 409]
    assert locks.acquire(attempt, "key 0").ok
    assert locks.acquire(at_work(), "key 3").ok


def test_locks_of_two_workspaces_have_nothing_to_do_with_each_other() -> None:
    mine, other = at_work(), at_work("other")
    workspace = type(other.run.workspace).objects.create(name="elsewhere")
    Run.objects.filter(pk=other.run_id).update(workspace=workspace)
    other.run.refresh_from_db()
    assert locks.acquire(mine, GITHUB).ok
    assert locks.acquire(other, GITHUB).ok


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    key=st.one_of(
        st.text(min_size=1),
        st.text(st.sampled_from("'\"\\\n\r\t\0\ud800 ü€😀;--%"), min_size=1),
        st.text(st.characters(), min_size=1, max_size=20).map(lambda text: text * 3000),
    )
)
def test_any_text_is_a_key(key: str, driven_clock: DrivenClock) -> None:
    holder = Lock.objects.filter(key="of the test").first()
    attempt = holder.attempt if holder else at_work()
    locks.acquire(attempt, "of the test")
    assert locks.acquire(attempt, key).ok
    assert locks.acquire(at_work(), key).status == 409
    assert locks.release(attempt, key).ok


def test_the_longest_keys_differ_by_one_character() -> None:
    mine, other = at_work(), at_work("other")
    assert locks.acquire(mine, "x" * 65_536).ok
    assert locks.acquire(other, "x" * 65_535 + "y").ok


# --- deadlocks ----------------------------------------------------------------------------------------------------


def test_a_circle_of_two_is_told_to_who_closes_it() -> None:
    a, b = at_work("a"), at_work("b")
    locks.acquire(a, "K1")
    locks.acquire(b, "K2")
    assert "deadlock" not in locks.acquire(a, "K2").body
    answer = locks.acquire(b, "K1")
    assert answer.status == 409
    circle = [name_of(b), "K1", name_of(a), "K2"]
    assert answer.body == {
        "ok": False,
        "reason": f"possible deadlock: {' → '.join([*circle, name_of(b)])}",
        "deadlock": True,
        "cycle": circle,
    }


def test_a_circle_of_three_is_told() -> None:
    a, b, c = at_work("a"), at_work("b"), at_work("c")
    for attempt, key in ((a, "K1"), (b, "K2"), (c, "K3")):
        locks.acquire(attempt, key)
    locks.acquire(a, "K2")
    locks.acquire(b, "K3")
    assert locks.acquire(c, "K1").body["cycle"] == [name_of(c), "K1", name_of(a), "K2", name_of(b), "K3"]


def test_a_circle_of_others_is_none_of_ones_own() -> None:
    a, b, c = at_work("a"), at_work("b"), at_work("c")
    for attempt, key in ((a, "K1"), (b, "K2"), (c, "K3")):
        locks.acquire(attempt, key)
    locks.acquire(a, "K2")
    locks.acquire(b, "K1")
    assert "deadlock" not in locks.acquire(c, "K1").body


def got_another(a: Attempt, b: Attempt) -> None:
    locks.acquire(a, "K3")


def holds_nothing(a: Attempt, b: Attempt) -> None:
    locks.release(a, "K1")
    locks.acquire(b, "K1")
    locks.release(b, "K1")
    locks.acquire(a, "K1")


@pytest.mark.parametrize("happens", [got_another, holds_nothing])
def test_a_wish_is_forgotten_when_its_holder(happens: Callable[[Attempt, Attempt], None]) -> None:
    a, b = at_work("a"), at_work("b")
    locks.acquire(a, "K1")
    locks.acquire(b, "K2")
    locks.acquire(a, "K2")
    assert LockWait.objects.get().attempt_id == a.pk
    happens(a, b)
    assert not LockWait.objects.filter(attempt=a).exists()
    assert "deadlock" not in locks.acquire(b, "K1").body


def test_wishes_and_locks_outlive_the_process() -> None:
    """All there is stands in rows, so another process closes the circle as well."""
    a, b = at_work("a"), at_work("b")
    locks.acquire(a, "K1")
    locks.acquire(b, "K2")
    locks.acquire(a, "K2")
    connection.close()
    assert locks.acquire(Attempt.objects.get(pk=b.pk), "K1").body["deadlock"] is True


# --- several at once ----------------------------------------------------------------------------------------------


def test_asks_of_one_batch_see_what_those_before_them_did() -> None:
    a, b = Holder.of(at_work("a")), Holder.of(at_work("b"))
    answers = locks.answer(
        [
            Ask("acquire", a, "K1"),
            Ask("acquire", b, "K1"),
            Ask("release", b, "K1"),
            Ask("acquire", b, "K2"),
            Ask("acquire", a, "K2"),
            Ask("acquire", b, "K1"),
            Ask("release", a, "K1"),
            Ask("acquire", b, "K1"),
            Ask("list", b),
            Ask("list", a),
        ]
    )
    assert [answer.status for answer in answers] == [200, 409, 409, 200, 409, 409, 200, 200, 200, 200]
    assert answers[5].body["deadlock"] is True
    assert {lock["resourceKey"] for lock in answers[8].body} == {"K1", "K2"}
    assert answers[9].body == []
    assert {(lock.key, lock.holder) for lock in Lock.objects.all()} == {("K1", b.name), ("K2", b.name)}


def test_a_batch_that_fails_leaves_nothing() -> None:
    attempt = at_work()
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        locks.acquire(attempt, GITHUB)
        raise ZeroDivisionError
    assert not Lock.objects.exists()


def test_of_fifty_that_want_it_one_is_inside_at_a_time() -> None:
    attempts = [at_work() for _ in range(50)]
    inside, entered, together = threading.Semaphore(1), [0], [0]

    def compete(attempt: Attempt) -> None:
        try:
            for _ in range(4):
                if not locks.acquire(attempt, GITHUB).ok:
                    continue
                if not inside.acquire(blocking=False):
                    together[0] += 1
                entered[0] += 1
                inside.release()
                assert locks.release(attempt, GITHUB).ok
        finally:
            connection.close()

    with ThreadPoolExecutor(12) as threads:
        list(threads.map(compete, attempts))
    assert together == [0]
    assert entered[0] > 0
    assert not Lock.objects.exists()


# --- the end of a run ---------------------------------------------------------------------------------------------


def finish(lease: Lease, run: Run) -> None:
    lifecycle.finish(lease, "done", redactor=NOTHING_SECRET)


def fail(lease: Lease, run: Run) -> None:
    lifecycle.fail(lease, "NO", "no", redactor=NOTHING_SECRET)


def cancel(lease: Lease, run: Run) -> None:
    lifecycle.cancel(lease, redactor=NOTHING_SECRET)


def retry(lease: Lease, run: Run) -> None:
    error = {"code": "NO", "message": "no"}
    lifecycle.retry(lease, run, error, wake_at=clock.now(), host_id="here", redactor=NOTHING_SECRET)


def parked_and_canceled(lease: Lease, run: Run) -> None:
    lifecycle.wait(lease, WaitReason.INPUT, redactor=NOTHING_SECRET)
    queue.cancel(run)


@pytest.mark.parametrize("end", [finish, fail, cancel, retry, parked_and_canceled])
def test_locks_and_wishes_go_with_the_attempt(end: Callable[[Lease, Run], None]) -> None:
    lease, attempt = begun(make_agent(scale=2))
    other = at_work("other")
    locks.acquire(other, "theirs")
    locks.acquire(attempt, GITHUB)
    locks.acquire(attempt, "theirs")
    end(lease, attempt.run)
    assert list(Lock.objects.values_list("key", flat=True)) == ["theirs"]
    assert not LockWait.objects.exists()
    assert locks.acquire(other, GITHUB).ok
    assert locks.acquire(attempt, "another").status == 403
    assert locks.held_by(attempt).body == {"error": "invalid secret"}


def test_a_lock_that_an_ended_attempt_has_left_counts_as_free() -> None:
    mine, other = at_work(), at_work("other")
    locks.acquire(mine, GITHUB)
    Attempt.objects.filter(pk=mine.pk).update(ended_at=clock.now())
    assert locks.acquire(other, GITHUB).ok


def test_the_sweep_removes_what_has_run_out(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    short, kept = at_work(), at_work()
    locks.acquire(kept, "kept")
    locks.acquire(short, "short", seconds=5)
    locks.acquire(short, "kept")
    assert locks.sweep() == 0
    driven_clock.forward(6)
    assert LockWait.objects.exists()
    assert locks.sweep() == 1
    assert [lock.key for lock in Lock.objects.all()] == ["kept"]
    assert not LockWait.objects.exists()


# --- the model's tools --------------------------------------------------------------------------------------------


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"name": name, "arguments": arguments}


def test_a_model_acquires_and_releases(worker: DrivenWorker) -> None:
    other = at_work("other")
    locks.acquire(other, "theirs")
    turns = [
        {
            "tools": [
                call("acquire_lock", resource_key=GITHUB, ttl_seconds=60),
                call("acquire_lock", resource_key="theirs"),
                call("acquire_lock", resource_key="kept"),
                call("release_lock", resource_key=GITHUB),
                call("release_lock", resource_key=GITHUB),
            ]
        },
        {"text": "done"},
    ]
    run = worker.drive(submit(make_agent(turns=turns)))
    assert run.status == Status.FINISHED
    results = [json.loads(call.result) for call in ToolCall.objects.filter(attempt__run=run)]
    assert [result["ok"] for result in results] == [True, False, True, True, False]
    assert results[1]["holder"] == name_of(other)
    assert results[4]["reason"] == "lock not found"
    assert [lock.key for lock in Lock.objects.all()] == ["theirs"]


def test_a_worker_that_dies_in_mid_acquire_leaves_both_or_neither(worker: DrivenWorker, points: Any) -> None:
    class Died(BaseException):
        pass

    def die() -> None:
        raise Died

    turns = [{"tools": [call("acquire_lock", resource_key=GITHUB)]}, {"text": "done"}]
    run = submit(make_agent(turns=turns))
    points.before("tool.end 1", die)
    with pytest.raises(Died):
        worker.drive(run)
    assert not Lock.objects.exists()
    assert ToolCall.objects.get().state == CallState.PLANNED


# --- the admin ----------------------------------------------------------------------------------------------------


def test_an_operator_sees_who_has_what_and_may_take_it_away() -> None:
    client = Client()
    client.force_login(User.objects.create_superuser("operator"))
    mine, other = at_work(), at_work("other")
    locks.acquire(mine, GITHUB)
    locks.acquire(mine, "<img src=x>")
    listed = client.get("/admin/runs/lock/").content.decode()
    assert GITHUB in listed
    assert name_of(mine) in listed
    assert "<img src=x>" not in listed
    assert GITHUB in client.get("/admin/runs/lock/", {"q": name_of(mine)}).content.decode()
    assert GITHUB in client.get("/admin/runs/lock/", {"q": GITHUB}).content.decode()
    assert GITHUB not in client.get("/admin/runs/lock/", {"q": "another"}).content.decode()
    lock = Lock.objects.get(key=GITHUB)
    assert "Release the lock" in client.get(f"/admin/runs/lock/{lock.pk}/release/").content.decode()
    assert Lock.objects.filter(key=GITHUB).exists()
    said = client.post(f"/admin/runs/lock/{lock.pk}/release/", follow=True)
    assert f"Took {GITHUB} away from {name_of(mine)}" in [str(message) for message in said.context["messages"]]
    assert locks.acquire(other, GITHUB).ok
    assert not locks.take_away(lock)
