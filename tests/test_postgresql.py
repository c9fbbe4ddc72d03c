"""What only PostgreSQL can show: a small pool under many waiting steps, row locks, and what readers see when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
from django.db import connection, transaction

from agents import clock
from agents.models import Agent
from agents.redaction import NOTHING_SECRET
from runs import events, leases, lifecycle, line
from runs.models import Host, Run
from tests.conftest import PATIENCE, DrivenWorker, PlayedModel, meanwhile, until
from tests.making import bash, make_agent, make_workspace, said, submit

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.only_postgresql]

POOL = 8


@pytest.fixture
def small_pool(db: None) -> Iterator[None]:
    """POOL connections for this process, and no long wait for one."""
    options = connection.settings_dict["OPTIONS"]
    before = options["pool"]
    start_pool_anew({**before, "min_size": 1, "max_size": POOL, "timeout": 10})
    yield
    start_pool_anew(before)


def start_pool_anew(pool: dict[str, Any]) -> None:
    postgresql: Any = connection
    postgresql.close()
    postgresql.close_pool()
    postgresql.settings_dict["OPTIONS"]["pool"] = pool


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(120) as threads:
        yield threads


def at(threads: ThreadPoolExecutor, what: Callable[..., Any], *args: Any, **keywords: Any) -> Future[Any]:
    """On a thread of its own, which gives its connection back."""

    def do() -> Any:
        try:
            return what(*args, **keywords)
        finally:
            connection.close()

    return threads.submit(do)


def connections_in_use() -> int:
    postgresql: Any = connection
    size: int = postgresql.pool.get_stats()["pool_size"]
    return size


# --- waiting ------------------------------------------------------------------------------------------------------


def test_a_hundred_steps_that_wait_for_a_model_leave_connections_for_others(
    worker: DrivenWorker, model: PlayedModel, small_pool: None, threads: ThreadPoolExecutor
) -> None:
    answers = [Future[Any]() for _ in range(100)]
    model.answers = list(answers)
    agent = make_agent(scale=100, tools=["set_status"])
    runs = [submit(agent) for _ in range(100)]
    steps = [at(threads, worker.look_for_work, agent.pk) for _ in runs]
    try:
        until(lambda: len(model.asked) == 100)
        # All of them wait now, and whoever asks gets an answer at once.
        connection.close()
        assert connections_in_use() <= POOL
        counted = [at(threads, Run.objects.filter(lease_owner=worker.owner).count) for _ in range(POOL)]
        assert [count.result(PATIENCE) for count in counted] == [100] * POOL
    finally:
        for answer in answers:
            answer.set_result(said("done"))
    for step in steps:
        step.result(PATIENCE)
    assert Run.objects.filter(status="finished").count() == 100


def test_steps_that_follow_a_command_leave_connections_for_others(
    worker: DrivenWorker, small_pool: None, threads: ThreadPoolExecutor
) -> None:
    turns = [{"tools": [bash("until [ -e go ]; do sleep 0.05; done; echo done")]}, {"text": "done"}]
    agent = make_agent(scale=2 * POOL, turns=turns)
    runs = [submit(agent) for _ in range(2 * POOL)]
    for _ in runs:
        worker.look_for_work(agent.pk)
    worker.rung.bells.clear()
    steps = [at(threads, worker.look, run.pk) for run in runs]
    try:
        until(lambda: len(worker.fake.commands) == len(runs))
        connection.close()
        counted = [at(threads, Run.objects.filter(lease_owner=worker.owner).count) for _ in range(POOL)]
        assert [count.result(PATIENCE) for count in counted] == [len(runs)] * POOL
    finally:
        for run in runs:
            (worker.fake._workspace(f"agentfleet-{run.pk}-1") / "go").touch()
    for step in steps:
        step.result(PATIENCE)
    for run in runs:
        worker.drive(run)
    assert Run.objects.filter(status="finished").count() == len(runs)


def test_steps_that_wait_for_their_sandbox_leave_connections_for_others(
    worker: DrivenWorker,
    model: PlayedModel,
    small_pool: None,
    threads: ThreadPoolExecutor,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started, start = threading.Event(), worker.fake.start

    def slowly(spec: Any) -> Any:
        assert started.wait(PATIENCE)
        return start(spec)

    monkeypatch.setattr(worker.fake, "start", slowly)
    agent = make_agent(scale=2 * POOL)
    runs = [submit(agent) for _ in range(2 * POOL)]
    model.answers = [said("done") for _ in runs]
    steps = [at(threads, worker.look_for_work, agent.pk) for _ in runs]
    try:
        until(lambda: Run.objects.filter(status="finished").count() == len(runs))
        connection.close()
        counted = [at(threads, Run.objects.count) for _ in range(POOL)]
        assert [count.result(PATIENCE) for count in counted] == [len(runs)] * POOL
    finally:
        started.set()
    for step in steps:
        step.result(PATIENCE)


# --- numbers ------------------------------------------------------------------------------------------------------


def test_events_of_many_writers_become_visible_in_order_and_without_gaps(threads: ThreadPoolExecutor) -> None:
    run = submit(make_agent())
    over = threading.Event()
    seen: list[list[int]] = []

    def write(writer: int) -> None:
        for number in range(25):
            with transaction.atomic():
                new = [events.New("test", {"writer": writer, "number": number, "part": part}) for part in range(3)]
                assert events.append(run.pk, new, redactor=NOTHING_SECRET)

    def read() -> None:
        while not over.is_set():
            seen.append([event["id"] for event in events.fetch(run.pk, limit=1000)])

    with meanwhile(read):
        writers = [at(threads, write, writer) for writer in range(8)]
        for writer in writers:
            writer.result(PATIENCE)
        over.set()
    total = 1 + 8 * 25 * 3
    assert [event["id"] for event in events.fetch(run.pk, limit=1000)] == list(range(1, total + 1))
    assert Run.objects.get(pk=run.pk).last_event == total
    # Whoever looked at any moment saw the numbers up to some point, and all of them.
    assert all(numbers == list(range(1, len(numbers) + 1)) for numbers in seen)
    assert all(len(earlier) <= len(later) for earlier, later in pairwise(seen))
    by_writer = [event["data"] for event in events.fetch(run.pk, after=1, limit=1000)]
    for first, second, third in zip(by_writer[::3], by_writer[1::3], by_writer[2::3], strict=True):
        assert [first["part"], second["part"], third["part"]] == [0, 1, 2]
        assert first["writer"] == second["writer"] == third["writer"]


# --- locks --------------------------------------------------------------------------------------------------------


@pytest.fixture
def host(db: None) -> Host:
    return Host.objects.create(pk="here", name="here", capacity=8, last_seen_at=clock.now())


def claim(agent: Agent) -> leases.Lease | None:
    return lifecycle.claim(agent.pk, owner="me", host_id="here")


def test_a_claim_under_way_does_not_keep_new_runs_out(host: Host, threads: ThreadPoolExecutor) -> None:
    """Nor their neighbours' claims: a plain FOR UPDATE of the agent would hold up every insert that names it."""
    agent = make_agent(scale=2)
    submit(agent)
    with transaction.atomic():
        assert claim(agent) is not None  # holds the workspace's row and the agent's until the block ends
        at(threads, submit, agent).result(PATIENCE)
    assert Run.objects.count() == 2


def test_a_step_under_way_does_not_keep_claims_out(host: Host, threads: ThreadPoolExecutor) -> None:
    agent = make_agent(scale=2)
    submit(agent)
    submit(agent)
    first = claim(agent)
    assert first is not None
    with transaction.atomic():
        events.append(first.run_id, [events.New("test")], redactor=NOTHING_SECRET)
        assert at(threads, claim, agent).result(PATIENCE) is not None


def test_claims_for_many_agents_at_once_keep_every_cap_and_never_deadlock(
    host: Host, threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    has_room = line.has_room

    def slowly(agent: Agent) -> bool:
        """Room for others between the count and what is made of it."""
        room = has_room(agent)
        time.sleep(0.02)
        return room

    monkeypatch.setattr(line, "has_room", slowly)
    make_workspace(scale=7)
    agents = [make_agent(name, scale=3) for name in ("a", "b", "c", "d")]
    for agent in agents:
        for _ in range(6):
            submit(agent)

    def claims(count: int) -> list[Future[Any]]:
        return [at(threads, claim, agents[number % 4]) for number in range(count)]

    leased = [lease for done in claims(24) if (lease := done.result(PATIENCE)) is not None]
    assert len(leased) == Run.objects.filter(has_slot=True).count() == 7
    assert max(Run.objects.filter(has_slot=True, agent=agent).count() for agent in agents) <= 3
    # Ends and claims together: they take the same rows.
    ends = [at(threads, lifecycle.finish, lease, "done", redactor=NOTHING_SECRET) for lease in leased]
    for done in [*claims(24), *ends]:
        done.result(PATIENCE)
    assert Run.objects.filter(has_slot=True).count() <= 7
    assert Run.objects.filter(status="finished").count() == 7


def test_cancels_claims_and_finishes_at_once_leave_every_run_with_one_end(
    host: Host, threads: ThreadPoolExecutor
) -> None:
    agent = make_agent(scale=5)
    runs = [submit(agent) for _ in range(30)]

    def work() -> None:
        lease = claim(agent)
        if lease is not None:
            lifecycle.finish(lease, "done", redactor=NOTHING_SECRET)

    acts = [act for run in runs for act in (at(threads, work), at(threads, lifecycle.cancel_idle, run.pk))]
    for act in acts:
        act.result(PATIENCE)
    while (lease := claim(agent)) is not None:
        lifecycle.finish(lease, "done", redactor=NOTHING_SECRET)
    for run in runs:
        changes = [event["data"]["to"] for event in events.fetch(run.pk) if event["type"] == "status.change"]
        assert changes in (["pending", "canceled"], ["pending", "processing", "finished"])
        assert Run.objects.get(pk=run.pk).status == changes[-1]
