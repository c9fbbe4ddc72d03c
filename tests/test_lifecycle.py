"""The states of a run, its slots, its line and its lease."""

from __future__ import annotations

import ast
import itertools
import threading
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext

from agents import clock
from agents.models import Priority
from agents.redaction import NOTHING_SECRET
from runs import events, leases, lifecycle, queue
from runs.leases import Lease, LeaseLost
from runs.lifecycle import TRANSITIONS
from runs.models import TERMINAL, Host, Run, Status, TriggerKind, WaitReason
from tests.conftest import Rung
from tests.making import make_agent, make_workspace, submit

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgresql]


@pytest.fixture(autouse=True)
def host(db: None) -> Host:
    return Host.objects.create(pk="here", name="here", capacity=8, last_seen_at=clock.now())


def claim(agent_id: int, owner: str = "me") -> Lease | None:
    return lifecycle.claim(agent_id, owner=owner, host_id="here")


def claimed(agent_id: int) -> Lease:
    lease = claim(agent_id)
    assert lease is not None
    return lease


def finish(lease: Lease) -> None:
    lifecycle.finish(lease, "done", redactor=NOTHING_SECRET)


def fail(lease: Lease) -> None:
    lifecycle.fail(lease, "NO", "no", redactor=NOTHING_SECRET)


def cancel(lease: Lease) -> None:
    lifecycle.cancel(lease, redactor=NOTHING_SECRET)


def wait(lease: Lease, reason: WaitReason = WaitReason.INPUT) -> None:
    lifecycle.wait(lease, reason, redactor=NOTHING_SECRET)


def statuses(run_id: str) -> list[str]:
    return [event["data"]["to"] for event in events.fetch(run_id) if event["type"] == "status.change"]


def test_only_the_lifecycle_writes_a_status() -> None:
    def writes(tree: ast.AST) -> bool:
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and node.attr == "status" and isinstance(node.ctx, ast.Store):
                return True
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                named = {keyword.arg for keyword in node.keywords}
                if (
                    node.func.attr in {"update", "create", "get_or_create", "bulk_update", "append"}
                    and "status" in named
                ):
                    return True
        return False

    folders = [settings.BASE_DIR / name for name in ("agentfleet", "agents", "runs", "webhooks")]
    files = itertools.chain.from_iterable(folder.rglob("*.py") for folder in folders)
    # Not of a run: the web server's refusal has one too.
    other = {"agentfleet/asgi.py"}
    found = {
        str(file.relative_to(settings.BASE_DIR))
        for file in files
        if "migrations" not in file.parts and writes(ast.parse(file.read_text()))
    }
    assert found - other == {"runs/lifecycle.py"}


def test_a_look_at_a_line_in_which_nobody_stands_locks_nothing() -> None:
    agent = make_agent()
    with CaptureQueriesContext(connection) as asked:
        assert claim(agent.pk) is None
    assert [query["sql"] for query in asked if not query["sql"].startswith("SELECT")] == []
    assert [query["sql"] for query in asked if "FOR " in query["sql"]] == []


def test_the_table_leads_nowhere_from_a_terminal_status() -> None:
    assert not any(old & TERMINAL for old, _ in TRANSITIONS.values())


@pytest.mark.parametrize(("end", "status"), [(finish, "finished"), (fail, "failed"), (cancel, "canceled")])
def test_a_run_ends_with_its_slot_free_and_its_history_whole(end: Callable[[Lease], None], status: str) -> None:
    agent = make_agent()
    run = submit(agent)
    end(claimed(agent.pk))
    run.refresh_from_db()
    assert (run.status, run.has_slot, run.lease_owner) == (status, False, "")
    assert run.finished_at is not None
    assert statuses(run.pk) == ["pending", "processing", status]
    assert run.last_event == len(events.fetch(run.pk))


@pytest.mark.parametrize("end", [finish, fail, cancel])
def test_a_terminal_status_is_final(end: Callable[[Lease], None]) -> None:
    agent = make_agent()
    run = submit(agent)
    lease = claimed(agent.pk)
    end(lease)
    before = Run.objects.values().get(pk=run.pk)
    for other in (finish, fail, cancel, wait):
        with pytest.raises(LeaseLost):
            other(lease)
    assert not lifecycle.wake(run.pk, WaitReason.INPUT)
    assert not lifecycle.cancel_idle(run.pk)
    assert not lifecycle.request_cancel(run.pk)
    assert leases.take(run.pk, "me") is None
    with pytest.raises(queue.AlreadyOver):
        queue.cancel(run)
    with pytest.raises(queue.NotWaiting):
        queue.respond(run, "too late")
    assert Run.objects.values().get(pk=run.pk) == before


def test_the_database_itself_refuses_what_makes_no_sense() -> None:
    run = submit(make_agent())
    senseless: list[dict[str, Any]] = [
        {"status": "finished"},  # and no finished_at
        {"status": "waiting"},  # and no reason
        {"status": "failed", "finished_at": clock.now()},  # and no error
        {"lease_owner": "me"},  # pending, and leased
        {"has_slot": True},  # pending, and seated
    ]
    for columns in senseless:
        with pytest.raises(IntegrityError), transaction.atomic():
            Run.objects.filter(pk=run.pk).update(**columns)


def test_scale_is_never_exceeded() -> None:
    agent = make_agent(scale=2)
    for _ in range(5):
        submit(agent)
    leased = [claim(agent.pk) for _ in range(5)]
    assert sum(lease is not None for lease in leased) == 2
    finish(next(lease for lease in leased if lease))
    assert claim(agent.pk) is not None
    assert claim(agent.pk) is None


def test_claims_from_many_threads_never_exceed_scale() -> None:
    agent = make_agent(scale=3)
    for _ in range(12):
        submit(agent)
    got: list[Lease | None] = []

    def try_it() -> None:
        try:
            got.append(claim(agent.pk))
        finally:
            connection.close()

    threads = [threading.Thread(target=try_it) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(lease is not None for lease in got) == 3
    assert Run.objects.filter(has_slot=True).count() == 3


def test_the_workspaces_cap_holds_over_all_agents() -> None:
    make_workspace(scale=2)
    agents = [make_agent(name, scale=5) for name in ("a", "b", "c")]
    for agent in agents:
        submit(agent)
    assert sum(claim(agent.pk) is not None for agent in agents) == 2


def test_the_line_goes_by_priority_and_then_by_age() -> None:
    agent = make_agent(scale=9)
    wanted = {}
    for number, priority in enumerate(["low", "normal", "high", "normal", "high"]):
        wanted[number] = submit(agent, priority=Priority.named(priority)).pk
    order = [claimed(agent.pk).run_id for _ in range(5)]
    assert order == [wanted[number] for number in (2, 4, 1, 3, 0)]


@pytest.mark.parametrize("column", ["active", "paused_at"])
def test_an_agent_that_may_not_start_keeps_its_line(column: str) -> None:
    agent = make_agent()
    run = submit(agent)
    type(agent).objects.filter(pk=agent.pk).update(**{column: False if column == "active" else clock.now()})
    assert claim(agent.pk) is None
    run.refresh_from_db()
    assert run.status == Status.PENDING
    agent.refresh_from_db()
    with pytest.raises(queue.AgentRefuses, match=agent.name):
        submit(agent)


def test_waiting_for_a_person_frees_the_slot_and_waking_stands_first_in_line() -> None:
    agent = make_agent()
    first, second = submit(agent), submit(agent)
    wait(claimed(agent.pk))
    second_lease = claimed(agent.pk)
    assert second_lease.run_id == second.pk
    third = submit(agent)
    assert lifecycle.wake(first.pk, WaitReason.INPUT)
    first.refresh_from_db()
    assert (first.status, first.has_slot) == ("processing", False)
    assert claim(agent.pk) is None
    finish(second_lease)
    assert claimed(agent.pk).run_id == first.pk
    assert Run.objects.get(pk=third.pk).status == "pending"


def test_a_short_wait_keeps_the_slot() -> None:
    agent = make_agent()
    run = submit(agent)
    submit(agent)
    wait(claimed(agent.pk), WaitReason.RATE_LIMIT)
    assert claim(agent.pk) is None
    assert lifecycle.wake(run.pk, WaitReason.RATE_LIMIT)
    assert leases.take(run.pk, "me") is not None


def test_time_spent_waiting_does_not_count_against_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make_agent(limits={"wall_seconds": 100})
    run = submit(agent)
    wait(claimed(agent.pk))
    before = Run.objects.get(pk=run.pk).deadline_at
    later = clock.now() + timedelta(days=3)
    monkeypatch.setattr(clock, "now", lambda: later)
    lifecycle.wake(run.pk, WaitReason.INPUT)
    claimed(agent.pk)
    after = Run.objects.get(pk=run.pk).deadline_at
    assert before is not None
    assert after is not None
    assert abs(after - before - timedelta(days=3)) < timedelta(seconds=5)


def test_waking_for_another_reason_does_nothing() -> None:
    agent = make_agent()
    run = submit(agent)
    wait(claimed(agent.pk))
    assert not lifecycle.wake(run.pk, WaitReason.APPROVAL)
    assert not lifecycle.wake(run.pk, WaitReason.RATE_LIMIT)
    run.refresh_from_db()
    assert run.wait_reason == "input"


def test_a_lease_is_taken_once_and_its_epoch_fences_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make_agent()
    run = submit(agent)
    old = claimed(agent.pk)
    assert leases.take(run.pk, "me") is None  # not even by its own holder
    later = clock.now() + leases.TERM + timedelta(seconds=1)
    monkeypatch.setattr(clock, "now", lambda: later)
    new = leases.take(run.pk, "other")
    assert new is not None
    assert new.epoch == old.epoch + 1
    with pytest.raises(LeaseLost):
        finish(old)
    finish(new)


def test_of_many_takers_one_gets_the_lease() -> None:
    agent = make_agent()
    run = submit(agent)
    leases.release(claimed(agent.pk))
    got: list[Lease | None] = []

    def try_it() -> None:
        try:
            got.append(leases.take(run.pk, "me"))
        finally:
            connection.close()

    threads = [threading.Thread(target=try_it) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(lease is not None for lease in got) == 1


def test_takeovers_without_progress_come_slower_and_slower(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make_agent()
    run = submit(agent)
    claimed(agent.pk)
    start = now = clock.now()
    waits = []
    monkeypatch.setattr(clock, "now", lambda: now)
    for _ in range(4):
        expired = Run.objects.get(pk=run.pk).lease_expires_at
        assert expired is not None
        while leases.take(run.pk, "me") is None:
            now += timedelta(milliseconds=500)
        waits.append(round((now - expired).total_seconds()))
    assert waits == [0, 2, 4, 8]
    assert Run.objects.get(pk=run.pk).takeovers == 4
    assert now > start


def test_a_tick_starts_one_run() -> None:
    agent = make_agent()
    at = clock.now()
    submit(agent, TriggerKind.SCHEDULE, scheduled_for=at)
    with pytest.raises(IntegrityError):
        submit(agent, TriggerKind.SCHEDULE, scheduled_for=at)


def test_every_end_rings_for_the_next(rung: Rung) -> None:
    agent = make_agent()
    submit(agent)
    lease = claimed(agent.pk)
    rung.bells.clear()
    finish(lease)
    assert [(bell.task, bell.subject) for bell in rung.bells] == [("runs.tasks.look_for_work", str(agent.pk))]


def test_a_bell_of_a_transaction_that_failed_does_not_ring(rung: Rung) -> None:
    agent = make_agent()
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        submit(agent)
        _ = 1 / 0
    assert rung.bells == []
    assert rung.notes == []
