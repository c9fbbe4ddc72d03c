"""Slots while a command waits for another run: lent, wanted back, taken back or given up. The scale always holds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.db import connection

from agents import clock
from agents.models import Agent
from agents.redaction import NOTHING_SECRET
from runs import agent_calls, leases, lifecycle, line, queue, slots, watch
from runs.agent_calls import NoSuchCall
from runs.models import Attempt, CallState, Run, ToolCall
from tests.conftest import PATIENCE, DrivenClock, DrivenWorker, Points
from tests.making import ask, bash, make_agent, make_workspace, status, submit
from tests.test_engine import GATED, Killed, kill, let_it_go_on, printed, reload, successor, types

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgresql]

DONE: list[dict[str, Any]] = [{"text": "done"}]
# As GATED, but for a run that was called.
GATED_UNLESS_CALLED = GATED.replace("[ -e go ]", "[ -e go ] || [ -e trigger.json ]")
ASKS: list[dict[str, Any]] = [{"tools": [ask("well?")]}, {"text": "done"}]


def seated(agent: Agent) -> int:
    return Run.objects.filter(line.SEATED, agent=agent).count()


class Waiting:
    """A run whose command has called `helper`, and what happens while the command waits for it."""

    def __init__(self, worker: DrivenWorker, points: Points, *calls: dict[str, Any], **changes: Any) -> None:
        self.worker = worker
        self.points = points
        self.agent = make_agent(
            "caller", turns=[{"tools": [bash(GATED_UNLESS_CALLED), *calls]}, {"text": "done"}], **changes
        )
        self.run = submit(self.agent)
        self.call_id = ""

    @property
    def attempt(self) -> Attempt:
        return Attempt.objects.get(run=self.run)

    def meanwhile(self, *acts: Callable[[], Any]) -> Run:
        """In the middle of the command: the call, the wait, then these; the run as it is when nobody rings."""

        def wait() -> None:
            self.call_id = agent_calls.call(self.attempt, "helper", "go")
            agent_calls.begin_wait(self.attempt, self.call_id)
            for act in acts:
                act()
            let_it_go_on(self.worker, self.run)

        self.points.after("output 1", wait)
        return self.worker.drive(self.run)

    def over(self) -> agent_calls.CallStatus | None:
        return agent_calls.wait_over(self.attempt, self.call_id)

    def drive_others(self) -> None:
        self.worker.drive(self.run)

    def comes_back(self) -> None:
        """The call is over, and the slot is back."""
        assert self.over() == {"status": "completed"}
        assert reload(self.run).slot_lent_at is None


@pytest.fixture
def waiting(worker: DrivenWorker, points: Points) -> Waiting:
    return Waiting(worker, points)


# --- lending and taking back --------------------------------------------------------------------------------------


def test_a_caller_and_its_callee_share_the_one_slot_of_their_workspace(worker: DrivenWorker, points: Points) -> None:
    make_workspace(scale=1)
    helper = make_agent("helper", turns=DONE)
    waiting = Waiting(worker, points)

    def not_yet() -> None:
        assert waiting.over() is None
        assert (seated(waiting.agent), reload(waiting.run).has_slot) == (0, True)

    run = waiting.meanwhile(not_yet, waiting.drive_others, waiting.comes_back)
    assert Run.objects.get(agent=helper).status == "finished"
    assert (run.status, printed(run)) == ("finished", "one\ntwo\n")
    assert [type_ for type_ in types(run) if type_.startswith("slot.")] == ["slot.lent", "slot.back"]


def test_an_agent_that_waits_can_be_called_by_another_meanwhile(waiting: Waiting) -> None:
    """Both wait for each other's agent, each of which has one slot."""
    back = {"name": "call_agent", "arguments": {"target_agent": "caller", "context": "and you?"}}
    make_agent("helper", turns=DONE)
    stranger = make_agent("stranger", turns=[{"tools": [back]}, {"text": "done"}])
    strangers = submit(stranger)

    def others_use_the_slot() -> None:
        waiting.drive_others()
        second = Run.objects.get(parent=strangers)
        assert (second.agent, second.status) == (waiting.agent, "finished")
        assert reload(waiting.run).slot_lent_at is not None

    run = waiting.meanwhile(others_use_the_slot)
    assert run.status == "finished"


def test_the_slot_comes_back_before_anybody_in_the_line_gets_it(waiting: Waiting) -> None:
    """And not before whoever had it meanwhile is done."""
    helper = make_agent("helper", turns=DONE)
    second, third = submit(waiting.agent), submit(waiting.agent)
    worker = waiting.worker

    def claim() -> Any:
        return lifecycle.claim(waiting.agent.pk, owner=worker.owner, host_id=worker.host_id)

    def others() -> None:
        lease = claim()
        assert lease is not None
        assert lease.run_id == second.pk
        worker.look_for_work(helper.pk)
        assert waiting.over() is None
        assert claim() is None
        lifecycle.cancel(lease, redactor=NOTHING_SECRET)
        assert claim() is None
        waiting.comes_back()
        assert claim() is None
        assert (seated(waiting.agent), reload(third).status) == (1, "pending")
        queue.cancel(third)

    assert waiting.meanwhile(others).status == "finished"


def test_a_wait_for_a_call_that_is_over_lends_nothing(waiting: Waiting) -> None:
    make_agent("helper", turns=DONE)

    def again() -> None:
        agent_calls.begin_wait(waiting.attempt, waiting.call_id)
        assert reload(waiting.run).slot_lent_at is None

    waiting.meanwhile(waiting.drive_others, waiting.comes_back, again)


def test_without_a_command_that_could_wait_no_slot_is_lent(worker: DrivenWorker) -> None:
    """A process that a command has left behind does not speak for the run."""
    make_agent("helper", turns=DONE)
    run = submit(make_agent("caller", turns=[{"tools": [status("busy")]}, {"text": "done"}]))
    worker.answer_one()
    attempt = Attempt.objects.get(run=run)
    call_id = agent_calls.call(attempt, "helper", "go")
    agent_calls.begin_wait(attempt, call_id)
    assert (reload(run).has_slot, reload(run).slot_lent_at, "slot.lent" in types(run)) == (True, None, False)


def test_nobody_waits_for_another_s_call(waiting: Waiting) -> None:
    make_agent("helper", turns=ASKS)

    def stranger() -> None:
        theirs = Run.objects.exclude(pk=waiting.run.pk).get().pk
        call_id = agent_calls.id_of(theirs[:-1] + ("1" if theirs.endswith("0") else "0"))
        for verb in (agent_calls.begin_wait, agent_calls.wait_over):
            with pytest.raises(NoSuchCall):
                verb(waiting.attempt, call_id)

    waiting.meanwhile(stranger)


def test_waiting_on_a_thread_ends_with_the_call_or_with_the_time(waiting: Waiting) -> None:
    make_agent("helper", turns=DONE)

    def wait() -> None:
        assert agent_calls.wait(waiting.attempt, waiting.call_id, 0.01) is None
        waiting.drive_others()
        assert agent_calls.wait(waiting.attempt, waiting.call_id, PATIENCE) == {"status": "completed"}

    assert waiting.meanwhile(wait).status == "finished"


# --- when somebody vanishes ---------------------------------------------------------------------------------------


def test_a_run_whose_command_ends_without_its_slot_stands_in_line(waiting: Waiting) -> None:
    make_agent("helper", turns=ASKS)
    second = submit(waiting.agent)
    worker = waiting.worker
    seats: list[int] = []

    def another_gets_it() -> None:
        lease = lifecycle.claim(waiting.agent.pk, owner=worker.owner, host_id=worker.host_id)
        assert lease is not None
        assert lease.run_id == second.pk
        leases.release(lease)
        worker.rung.bells.clear()

    def watch() -> None:
        seats.append(seated(waiting.agent))

    waiting.points.after("slot.given_up 1", watch)
    run = waiting.meanwhile(another_gets_it)
    assert (run.status, run.has_slot, seats) == ("processing", False, [1])
    assert worker.fake.commands[-1].call_id == "1-0.0"
    worker.look(second.pk)
    let_it_go_on(worker, second)
    assert worker.drive(run).status == "finished"
    assert types(run).index("slot.given_up") < types(run).index("run.resumed")


@pytest.mark.parametrize("calls", [[], [bash("echo next")], [status("next")]])
def test_nothing_more_is_done_without_the_slot(
    worker: DrivenWorker, points: Points, calls: list[dict[str, Any]]
) -> None:
    """Neither a model request nor the next call of the same turn."""
    make_agent("helper", turns=ASKS)
    waiting = Waiting(worker, points, *calls)
    rows = Agent.objects.filter(pk=waiting.agent.pk)
    run = waiting.meanwhile(lambda: rows.update(scale=0))
    assert (run.status, run.has_slot, run.lease_owner, run.slot_lent_at) == ("processing", False, "", None)
    seen = types(run)
    assert seen[-1] == "slot.given_up"
    assert (seen.count("model.start"), seen.count("tool.start")) == (1, 1)
    rows.update(scale=1)
    worker.sweep()
    assert worker.drive(run).status == "finished"
    assert types(run).count("tool.start") == 1 + len(calls)


@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("write", ["slot.lent 1", "slot.given_up 1", "output 2"])
def test_whoever_dies_nothing_stays_lent_and_nothing_runs_twice(
    worker: DrivenWorker, points: Points, driven_clock: DrivenClock, moment: str, write: str
) -> None:
    make_agent("helper", turns=DONE)
    waiting = Waiting(worker, points)
    getattr(points, moment)(write, kill)
    with pytest.raises(Killed):
        waiting.meanwhile()
    let_it_go_on(worker, waiting.run)
    run = successor(worker, driven_clock).drive(waiting.run)
    assert (run.status, run.slot_lent_at, printed(run)) == ("finished", None, "one\ntwo\n")
    assert types(run).count("tool.start") == 1


def test_a_slot_whose_borrower_is_silent_is_taken_back(waiting: Waiting, driven_clock: DrivenClock) -> None:
    """The gateway was killed, say; the command goes on by itself."""
    make_agent("helper", turns=ASKS)

    def time_passes() -> None:
        driven_clock.forward(50)
        assert waiting.over() is None  # somebody is there
        driven_clock.forward(50)
        slots.sweep()
        assert reload(waiting.run).slot_lent_at is not None
        driven_clock.forward(20)
        slots.sweep()
        assert (reload(waiting.run).slot_lent_at, seated(waiting.agent)) == (None, 1)

    waiting.meanwhile(time_passes)


def test_a_run_that_waits_for_another_is_not_called_silent(waiting: Waiting, driven_clock: DrivenClock) -> None:
    make_agent("helper", turns=ASKS)

    def look() -> None:
        driven_clock.forward(3600)
        assert watch.silent_runs(clock.now()) == {}
        Run.objects.filter(pk=waiting.run.pk).update(slot_lent_at=None)
        assert list(watch.silent_runs(clock.now())) == [waiting.run.pk]

    waiting.meanwhile(look)


def test_the_sweep_gives_back_what_is_wanted(waiting: Waiting) -> None:
    """To a command whose gateway died after it had asked."""
    helper = make_agent("helper", turns=DONE)
    second = submit(waiting.agent)
    worker = waiting.worker

    def another_has_it() -> None:
        lease = lifecycle.claim(waiting.agent.pk, owner=worker.owner, host_id=worker.host_id)
        assert lease is not None
        worker.look_for_work(helper.pk)
        assert waiting.over() is None
        slots.sweep()
        assert reload(waiting.run).slot_lent_at is not None
        lifecycle.cancel(lease, redactor=NOTHING_SECRET)
        slots.sweep()
        assert (reload(waiting.run).slot_lent_at, seated(waiting.agent)) == (None, 1)

    assert waiting.meanwhile(another_has_it).status == "finished"
    assert reload(second).status == "canceled"


def test_a_run_that_has_lent_its_slot_can_be_canceled(waiting: Waiting) -> None:
    helper = make_agent("helper", turns=ASKS)

    def cancel() -> None:
        queue.cancel(waiting.run)
        waiting.worker.look(waiting.run.pk)

    run = waiting.meanwhile(waiting.drive_others, cancel)
    assert (run.status, run.has_slot, run.slot_lent_at) == ("canceled", False, None)
    assert Run.objects.get(agent=helper).status == "canceled"


# --- at the same time ---------------------------------------------------------------------------------------------


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(6) as threads:
        yield threads


def test_however_many_lend_and_take_back_at_once_the_scale_holds(
    worker: DrivenWorker, threads: ThreadPoolExecutor
) -> None:
    """Each of six runs gets a slot, lends it, wants it back and ends, all on threads of their own."""
    make_workspace(scale=3)
    agents = [make_agent(name, scale=2) for name in ("one", "two")]
    runs = [submit(agent) for _ in range(3) for agent in agents]
    counted: list[list[int]] = []

    def look() -> None:
        counted.append([seated(agent) for agent in agents])

    lives = [threads.submit(live, worker, run.agent, look) for run in runs]
    for one in lives:
        one.result(2 * PATIENCE)
    assert [seats for seats in counted if max(seats) > 2 or sum(seats) > 3] == []
    assert len(counted) == 6 * len(runs)
    assert set(Run.objects.values_list("status", flat=True)) == {"finished"}


def live(worker: DrivenWorker, agent: Agent, look: Callable[[], None]) -> None:
    """The life of a run of the agent whose command waits three times."""
    try:
        lease = patiently(lambda: lifecycle.claim(agent.pk, owner=worker.owner, host_id=worker.host_id))
        attempt = Attempt.objects.get(run=lease.run_id)
        ToolCall.objects.create(
            attempt=attempt, call_id="1-0", model_call_id="c", position=1, index=0, name="bash", arguments={},
            state=CallState.STARTED, sandbox_id="box",
        )  # fmt: skip
        for _ in range(3):
            assert slots.lend(attempt)
            look()
            patiently(lambda: slots.take_back(lease.run_id))
            look()
        lifecycle.finish(lease, "done", redactor=NOTHING_SECRET)
    finally:
        connection.close()


def patiently(what: Callable[[], Any]) -> Any:
    """What it gives, as soon as that is something."""
    end = time.monotonic() + PATIENCE
    while not (got := what()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)
    return got
