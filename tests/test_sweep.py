"""What the sweep finds where no doorbell rang: it needs the database and nothing else."""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from typing import Any

import pytest

from agents import clock
from agents.models import Agent
from runs import bells, leases, lifecycle, queue, sweep
from runs.leases import Lease
from runs.models import Attempt, Host, Run, SandboxState, ToolCall
from runs.sandbox.base import Spec
from tests.conftest import DrivenClock, DrivenWorker, other_worker
from tests.making import ask, bash, make_agent, make_workspace, status, submit

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgresql]

THINKS: dict[str, Any] = {"tools": ["set_status"], "turns": [{"tools": [status("thinking")]}, {"text": "done"}]}


def reload(run: Run) -> Run:
    return Run.objects.get(pk=run.pk)


def attempt_of(run: Run) -> Attempt:
    return Attempt.objects.get(run=run)


def sweep_until_it_rests(worker: DrivenWorker, driven_clock: DrivenClock, rounds: int = 12) -> None:
    """Rounds of sweeping with every bell lost."""
    for _ in range(rounds):
        worker.sweep()
        worker.rung.bells.clear()
        driven_clock.forward(2)
        worker._handed.clear()


def handed(worker: DrivenWorker) -> int:
    """How much one round hands to the worker, which begins none of it."""
    before = len(worker.handed.waiting)
    for rarely in ("engine", "networks"):  # which are handed over like any other work
        sweep._last[worker.host_id, rarely] = time.monotonic()
    sweep.sweep(worker)
    return len(worker.handed.waiting) - before


def make_host(name: str, *, silent_for: float = 0) -> Host:
    return Host.objects.create(pk=name, name=name, last_seen_at=clock.now() - timedelta(seconds=silent_for))


# --- lost doorbells -----------------------------------------------------------------------------------------------


def test_runs_come_to_their_end_without_a_single_bell(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    agents = [make_agent("one", **THINKS), make_agent("two", scale=2, **THINKS)]
    runs = [submit(agent) for agent in agents for _ in range(3)]
    sweep_until_it_rests(worker, driven_clock)
    assert {reload(run).status for run in runs} == {"finished"}


def test_they_come_to_their_end_without_redis(
    worker: DrivenWorker, driven_clock: DrivenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The carrier is the real one; at the other end there is nobody."""
    carrier = bells._Carrier()
    monkeypatch.setattr(bells, "_carrier", carrier)
    run = submit(make_agent(turns=[{"tools": [bash("echo hi")]}, {"text": "done"}]))
    sweep_until_it_rests(worker, driven_clock)
    assert reload(run).status == "finished"


def test_no_more_is_handed_than_there_are_free_threads(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    worker.threads = 3
    for name in ("a", "b", "c"):
        agent = make_agent(name, scale=2)
        submit(agent)
        lease = lifecycle.claim(agent.pk, owner="somebody", host_id=worker.host_id)
        assert lease is not None
        leases.release(lease)
        submit(agent)
    driven_clock.forward(2)
    assert handed(worker) == 3
    assert handed(worker) == 0
    assert Run.objects.filter(lease_owner=worker.owner).count() == 0


def test_nothing_is_handed_twice_within_two_seconds(worker: DrivenWorker) -> None:
    submit(make_agent())
    assert handed(worker) == 1
    assert handed(worker) == 0
    worker._handed = {key: at - sweep.EVERY for key, at in worker._handed.items()}
    assert handed(worker) == 1


def test_no_more_is_handed_for_an_agent_than_stand_in_its_line(worker: DrivenWorker) -> None:
    """Or an agent with many slots and one run would leave no thread for the others."""
    for name in ("a", "b", "c"):
        submit(make_agent(name, scale=50))
    assert handed(worker) == 3


@pytest.mark.parametrize("change", [{"active": False}, {"paused_at": "now"}, {"scale": 0}])
def test_an_agent_that_may_not_start_keeps_no_thread_from_the_others(
    worker: DrivenWorker, change: dict[str, Any]
) -> None:
    worker.threads = 2
    idle = make_agent("a", scale=50, **THINKS)
    for _ in range(10):
        submit(idle)
    wanted = {name: clock.now() if value == "now" else value for name, value in change.items()}
    Agent.objects.filter(pk=idle.pk).update(**wanted)
    run = submit(make_agent("b", **THINKS))
    worker.sweep()
    assert reload(run).status == "processing"
    assert Run.objects.filter(agent=idle, status="pending").count() == 10


def test_an_agent_whose_slots_are_taken_gets_nothing(worker: DrivenWorker) -> None:
    agent = make_agent(scale=1, **THINKS)
    first = submit(agent)
    submit(agent)
    worker.answer_one()
    assert reload(first).lease_owner == ""
    worker.rung.bells.clear()
    assert handed(worker) == 0


def test_the_workspaces_cap_holds_for_the_sweep_too(worker: DrivenWorker) -> None:
    make_workspace(scale=2)
    for name in ("a", "b", "c"):
        submit(make_agent(name, scale=2, **THINKS))
    worker.sweep()
    assert Run.objects.filter(has_slot=True).count() == 2


def test_a_bell_that_was_heard_is_not_swept(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    """A run just released has its bell under way: the sweep gives it a second."""
    run = submit(make_agent(**THINKS))
    worker.answer_one()
    assert reload(run).status == "processing"
    assert handed(worker) == 0
    driven_clock.forward(1.1)
    assert handed(worker) == 1


# --- leases -------------------------------------------------------------------------------------------------------


def claimed(worker: DrivenWorker, agent: Agent, owner: str) -> Lease:
    lease = lifecycle.claim(agent.pk, owner=owner, host_id=worker.host_id)
    assert lease is not None
    return lease


def test_a_lease_that_ended_is_taken_over(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    agent = make_agent(**THINKS)
    run = submit(agent)
    claimed(worker, agent, "a frozen one")
    driven_clock.forward(19)
    worker.sweep()
    assert reload(run).lease_owner == "a frozen one"
    driven_clock.forward(3)
    worker.sweep()
    assert worker.drive(run).status == "finished"


def test_the_leases_of_a_dead_process_on_this_host_end_at_once(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    agent = make_agent(**THINKS)
    run = submit(agent)
    claimed(worker, agent, worker.owner)
    second = other_worker(worker)
    second.sweep()
    assert reload(run).lease_owner == worker.owner
    assert second.dead_owners() == 0  # it lives
    worker.die()
    second.sweep()
    driven_clock.forward(2)
    second.sweep()
    assert second.drive(run).status == "finished"


def test_the_runs_of_another_living_host_are_left_alone(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    agent = make_agent(**THINKS)
    run = submit(agent)
    there = make_host("there")
    lease = lifecycle.claim(agent.pk, owner="its worker", host_id=there.pk)
    assert lease is not None
    driven_clock.forward(50)
    worker.sweep()
    assert reload(run).lease_epoch == lease.epoch


def run_on_a_host_that_dies(worker: DrivenWorker, driven_clock: DrivenClock, agent: Agent, *, steps: int) -> Run:
    """A run some steps into its work on another host, which is then not heard of any more."""
    run = submit(agent)
    there = make_host("there")
    ours, worker.host_id = worker.host_id, there.pk
    for _ in range(steps):
        worker.answer_one()
    worker.host_id = ours
    worker.rung.bells.clear()
    driven_clock.forward(61)
    worker._seen()
    return run


def test_a_run_of_a_dead_host_that_has_no_sandbox_yet_goes_on_here(
    worker: DrivenWorker, driven_clock: DrivenClock
) -> None:
    turns = [{"tools": [status("thinking")]}, {"tools": [bash("echo hi")]}, {"text": "done"}]
    run = run_on_a_host_that_dies(worker, driven_clock, make_agent(turns=turns, sandbox="lazy"), steps=1)
    worker.sweep()
    # From here on the bells ring at this host.
    assert {bell.host for bell in worker.rung.bells} == {worker.host_id}
    run = worker.drive(run)
    assert (run.status, run.host_id) == ("finished", worker.host_id)
    assert attempt_of(run).host_id == worker.host_id
    assert worker.engine.names() == []


def test_a_run_whose_sandbox_died_with_its_host_starts_anew_here(
    worker: DrivenWorker, driven_clock: DrivenClock
) -> None:
    turns = [{"tools": [bash("echo hi")]}, {"text": "done"}]
    run = run_on_a_host_that_dies(worker, driven_clock, make_agent(turns=turns), steps=1)
    worker.sweep()
    worker.drive(run)
    first, second = run.attempts.order_by("number")
    assert first.error is not None
    assert first.error["code"] == "SANDBOX_LOST"
    assert "there" in first.error["message"]
    assert ToolCall.objects.get().state == "planned"
    # What stands there is for that host to remove, should it come back.
    assert (first.host_id, first.has_workspace) == ("there", True)
    assert (second.host_id, second.ended_at) == (worker.host_id, None)
    driven_clock.forward(13)
    worker.sweep()
    assert worker.drive(run).status == "finished"


def test_a_run_that_had_begun_a_command_on_a_host_that_died_fails(
    worker: DrivenWorker, driven_clock: DrivenClock
) -> None:
    agent = make_agent(turns=[{"tools": [bash("echo hi")]}, {"tools": [bash("echo ho")]}])
    run = run_on_a_host_that_dies(worker, driven_clock, agent, steps=3)
    assert ToolCall.objects.filter(state="done").count() == 1
    worker.sweep()
    run = worker.drive(run)
    assert run.status == "failed"
    assert run.error is not None
    assert run.error["code"] == "SANDBOX_LOST"
    assert run.attempts.count() == 1


def test_an_answered_run_of_a_dead_host_does_not_block_its_agents_line(
    worker: DrivenWorker, driven_clock: DrivenClock
) -> None:
    agent = make_agent(turns=[{"tools": [ask("which?")]}, {"text": "done"}], tools=["ask"])
    first = run_on_a_host_that_dies(worker, driven_clock, agent, steps=2)
    second = submit(agent)
    queue.respond(first, "that")
    for _ in range(4):
        worker.sweep()
        worker.drive(first)
        driven_clock.forward(2)
    assert reload(first).status == "finished"
    assert reload(second).status == "waiting"  # for its own answer


# --- waking, schedules --------------------------------------------------------------------------------------------


def test_a_pause_ends_when_its_time_has_come(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    worker.fake.down = True
    run = worker.drive(submit(make_agent(turns=[{"text": "done"}])))
    worker.fake.down = False
    driven_clock.forward(4)
    worker.sweep()
    assert reload(run).status == "waiting"
    driven_clock.forward(2)
    worker.sweep()
    worker.rung.bells.clear()
    assert reload(run).status == "processing"
    driven_clock.forward(2)
    worker.sweep()
    assert worker.drive(run).status == "finished"


def test_a_tick_that_is_due_starts_its_run(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    agent = make_agent(schedule="* * * * *", **THINKS)
    worker.sweep()
    driven_clock.forward(60)
    worker.sweep()
    run = Run.objects.get(agent=agent)
    assert run.trigger == "schedule"
    assert worker.drive(run).status == "finished"


# --- what stands and should not -----------------------------------------------------------------------------------


def parked(worker: DrivenWorker) -> Run:
    """A run with a file in its workspace, waiting for an answer in a sandbox that runs."""
    turns = [
        {"tools": [bash("echo kept >file"), ask("go on?")]},
        {"tools": [bash("cat file")]},
        {"expect": ["kept"], "text": "done"},
    ]
    run = worker.drive(submit(make_agent(turns=turns)))
    assert run.status == "waiting"
    return run


def test_a_parked_runs_container_goes_and_its_work_stays(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    run = parked(worker)
    name = attempt_of(run).sandbox_name
    driven_clock.forward(9 * 60)
    worker.sweep()
    assert worker.engine.names() == [name]
    driven_clock.forward(2 * 60)
    worker.sweep()
    assert worker.engine.names() == []
    assert (attempt_of(run).sandbox_state, attempt_of(run).has_workspace) == (SandboxState.GONE, True)
    queue.respond(run, "yes")
    run = worker.drive(run)
    assert (run.status, run.output) == ("finished", "done")
    assert attempt_of(run).sandbox_losses == 0
    assert worker.engine.names() == []


def test_a_container_that_cannot_be_put_away_now_is_put_away_later(
    worker: DrivenWorker, driven_clock: DrivenClock, caplog: pytest.LogCaptureFixture
) -> None:
    run = parked(worker)
    driven_clock.forward(11 * 60)
    worker.fake.down = True
    with caplog.at_level(logging.CRITICAL):
        worker.sweep()
    worker.fake.down = False
    worker._handed.clear()
    worker.sweep()
    assert worker.engine.names() == []
    assert attempt_of(run).sandbox_state == SandboxState.GONE
    queue.respond(run, "yes")
    assert worker.drive(run).status == "finished"


def test_an_answer_that_comes_while_the_container_is_put_away_finds_a_new_one(
    worker: DrivenWorker, driven_clock: DrivenClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = parked(worker)
    driven_clock.forward(11 * 60)
    remove = worker.fake.remove

    def answered_first(name: str) -> None:
        monkeypatch.setattr(worker.fake, "remove", remove)
        queue.respond(run, "yes")
        remove(name)

    monkeypatch.setattr(worker.fake, "remove", answered_first)
    worker.sweep()
    run = worker.drive(run)
    assert (run.status, run.output) == ("finished", "done")
    assert worker.engine.names() == []


def test_what_an_ended_run_left_is_removed(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    run = parked(worker)
    queue.cancel(run)
    worker.drive(run)
    name = attempt_of(run).sandbox_name
    assert worker.engine.names() == [name]
    driven_clock.forward(4)
    worker.sweep()
    assert worker.engine.names() == [name]  # its own worker may be at it
    driven_clock.forward(2)
    worker.sweep()
    assert worker.engine.names() == []
    assert not worker.fake._workspace(name).exists()
    assert (attempt_of(run).sandbox_state, attempt_of(run).has_workspace) == (SandboxState.GONE, False)


def test_a_sandbox_no_row_knows_is_removed_and_a_live_runs_stays(
    worker: DrivenWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = parked(worker)
    unknown = ["agentfleet-run_never-1", f"agentfleet-{run.pk}-2", "something-else"]
    for name in unknown:
        worker.fake.start(Spec(name=name, image="image"))
    monkeypatch.setattr(sweep, "_last", {})
    worker.sweep()
    assert worker.engine.names() == [attempt_of(run).sandbox_name]
    assert not any(worker.fake._workspace(name).exists() for name in unknown)


def test_the_networks_of_sandboxes_are_looked_after_now_and_then(
    worker: DrivenWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    monkeypatch.setattr(worker.fake, "keep_networks", lambda: looks.append(time.monotonic()))
    worker.sweep()
    worker.sweep()
    assert len(looks) == 1
    monkeypatch.setattr(sweep, "LOOK_AT_NETWORKS_EVERY", 0.0)
    worker._handed.clear()
    worker.sweep()
    assert len(looks) == 2


def test_an_engine_that_is_down_stops_nothing_else(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    left = parked(worker)
    queue.cancel(left)
    worker.drive(left)
    driven_clock.forward(6)
    worker.fake.down = True
    run = submit(make_agent("thinker", **THINKS))
    worker.sweep()
    assert worker.drive(run).status == "finished"
    assert attempt_of(left).has_workspace
    worker.fake.down = False
    worker._handed.clear()
    worker.sweep()
    assert worker.engine.names() == []


# --- deleted runs -------------------------------------------------------------------------------------------------


def test_a_deleted_run_goes_once_nothing_of_it_stands(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    run = parked(worker)
    name = attempt_of(run).sandbox_name
    queue.delete(run, force=True)
    worker.drive(run)
    driven_clock.forward(6)
    worker.fake.down = True
    worker.sweep()
    assert Run.objects.filter(pk=run.pk).exists()
    worker.fake.down = False
    worker._handed.clear()
    worker.sweep()
    assert not Run.objects.filter(pk=run.pk).exists()
    assert worker.engine.names() == []
    assert not worker.fake._workspace(name).exists()


def test_a_run_deleted_at_work_goes_with_the_next_sweeps(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    run = submit(make_agent(**THINKS))
    worker.answer_one()
    queue.delete(run, force=True)
    sweep_until_it_rests(worker, driven_clock)
    assert not Run.objects.exists()


# --- faults -------------------------------------------------------------------------------------------------------


PARTS = [
    "end_leases_of_the_dead",
    "wake_the_due",
    "expire_approvals",
    "fire_schedules",
    "hand_steps",
    "hand_work",
    "remove_leftovers",
    "purge_deleted",
]


@pytest.mark.parametrize("broken", PARTS)
def test_a_part_that_raises_does_not_stop_the_others(
    worker: DrivenWorker, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, broken: str
) -> None:
    called: list[str] = []

    def part(name: str) -> Any:
        def run(_: Any) -> None:
            called.append(name)
            if name == broken:
                raise RuntimeError("no")

        run.__name__ = name
        return run

    for name in PARTS:
        monkeypatch.setattr(sweep, name, part(name))
    sweep.sweep(worker)
    assert called == PARTS
    assert f"sweep: {broken}" in caplog.text


def test_a_run_that_cannot_be_handled_does_not_stop_the_others(
    worker: DrivenWorker, driven_clock: DrivenClock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good = (submit(make_agent(name, **THINKS)) for name in ("bad", "good"))
    work = worker._work

    def fails_for_one(lease: Lease) -> None:
        if lease.run_id == bad.pk:
            raise RuntimeError("cannot be handled")
        work(lease)

    monkeypatch.setattr(worker, "_work", fails_for_one)
    sweep_until_it_rests(worker, driven_clock)
    assert reload(good).status == "finished"
    assert "cannot be handled" in caplog.text
