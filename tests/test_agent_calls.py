"""Runs that call other runs: who may, what comes back, and who ends with whom."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import yaml
from django.db import connection
from django.utils import timezone

from agents.models import Agent, AgentFile, Workspace
from runs import agent_calls, attempt_keys, inputs, lifecycle, queue
from runs.agent_calls import NoSuchCall, Refused
from runs.models import Attempt, InputMode, Run, TriggerKind
from tests.conftest import PATIENCE, DrivenClock, DrivenWorker, Points
from tests.making import ask, make_agent, submit
from tests.test_engine import Killed, data, kill, reload, successor, told

pytestmark = pytest.mark.django_db(transaction=True)


def call(target: str = "helper", context: str = "go") -> dict[str, Any]:
    return {"name": "call_agent", "arguments": {"target_agent": target, "context": context}}


def check(call_id: str, **arguments: Any) -> dict[str, Any]:
    return {"name": "check_call", "arguments": {"call_id": call_id, **arguments}}


def returns(value: str) -> dict[str, Any]:
    return {"name": "return_value", "arguments": {"value": value}}


def caller_of(worker: DrivenWorker, name: str = "caller", **changes: Any) -> Attempt:
    """The attempt of a run that waits for an answer."""
    turns = [{"tools": [ask("well?")]}, {"text": "done"}]
    run = worker.drive(submit(make_agent(name, turns=turns, **changes)))
    return Attempt.objects.get(run=run)


def called(attempt: Attempt) -> Run:
    return Run.objects.get(parent=attempt.run_id)


# --- calling ------------------------------------------------------------------------------------------------------


def test_a_call_is_a_run_of_the_other_agent_and_says_who_called(worker: DrivenWorker) -> None:
    caller = caller_of(worker)
    make_agent("helper", turns=[{"expect": ["find it"], "tools": [returns("here")]}, {"text": "found"}])
    call_id = agent_calls.call(caller, "helper", "find it")
    assert str(uuid.UUID(call_id)) == call_id
    run = called(caller)
    assert (run.trigger, run.trigger_context) == ("call", {"caller": "caller", "context": "find it"})
    assert run.ancestors == [[caller.run_id, "caller"]]
    assert agent_calls.status(caller, call_id) == {"status": "pending"}
    worker.answer_one()
    assert agent_calls.status(caller, call_id) == {"status": "running"}
    worker.drive(run)
    assert agent_calls.status(caller, call_id) == {"status": "completed", "returnValue": "here"}
    made = {"callId": call_id, "targetAgent": "helper", "run": run.pk, "context": "find it"}
    assert data(caller.run, "call") == [made]


@pytest.mark.postgresql
def test_a_model_calls_once_although_its_worker_dies(
    worker: DrivenWorker, points: Points, driven_clock: DrivenClock
) -> None:
    make_agent("helper", turns=[{"text": "done"}])
    run = submit(make_agent("caller", turns=[{"tools": [call()]}, {"expect": ["callId"], "text": "done"}]))
    points.before("tool.end 1", kill)
    with pytest.raises(Killed):
        worker.drive(run)
    assert Run.objects.filter(parent=run).count() == 0
    assert successor(worker, driven_clock).drive(run).status == "finished"
    assert Run.objects.filter(parent=run).count() == 1


def switched_off(agent: Agent, **changes: Any) -> None:
    Agent.objects.filter(pk=agent.pk).update(**changes)


@pytest.mark.postgresql
@pytest.mark.parametrize(
    ("target", "changes", "reason"),
    [
        ("caller", {}, "agent cannot call itself"),
        ("nobody", {}, 'target agent "nobody" not found'),
        ("elsewhere", {}, 'target agent "elsewhere" not found'),
        ("helper", {"scale": 0}, 'target agent "helper" is disabled'),
        ("helper", {"active": False}, 'target agent "helper" is disabled'),
        ("helper", {"paused_at": timezone.now()}, 'target agent "helper" is disabled'),
        ("helper", {"scale": 1, "queue_size": 0}, "queue full"),
    ],
)
def test_a_call_that_cannot_be_is_refused_and_leaves_nothing(
    worker: DrivenWorker, target: str, changes: dict[str, Any], reason: str
) -> None:
    helper = make_agent("helper", turns=[{"tools": [ask("well?")]}])
    other = make_agent("elsewhere")
    Agent.objects.filter(pk=other.pk).update(workspace=Workspace.objects.create(name="other"))
    caller = caller_of(worker)
    if reason == "queue full":
        submit(helper)
    switched_off(helper, **changes)
    counted = Run.objects.count()
    with pytest.raises(Refused) as refused:
        agent_calls.call(caller, target, "go")
    assert str(refused.value) == reason
    assert Run.objects.count() == counted
    assert data(caller.run, "call") == []


def test_a_refused_call_is_told_to_the_model(worker: DrivenWorker) -> None:
    run = worker.drive(submit(make_agent("caller", turns=[{"tools": [call("nobody")]}, {"text": "done"}])))
    assert run.status == "finished"
    assert told(run) == [('target agent "nobody" not found', True)]


def chain(worker: DrivenWorker, names: Sequence[str], **changes: Any) -> Attempt:
    """Each has called the next; the last one's attempt."""
    caller = caller_of(worker, names[0], **changes)
    for name in names[1:]:
        make_agent(name, turns=[{"tools": [ask("well?")]}], **changes)
        agent_calls.call(caller, name, "go on")
        caller = Attempt.objects.get(run=worker.drive(called(caller)))
    return caller


def test_calls_go_only_so_deep(worker: DrivenWorker) -> None:
    last = chain(worker, ["a", "b", "c"], max_call_depth=2)
    make_agent("d")
    assert [name for _, name in last.run.ancestors] == ["a", "b"]
    with pytest.raises(Refused, match="trigger depth limit reached"):
        agent_calls.call(last, "d", "go on")


def test_no_agent_is_called_twice_in_one_chain(worker: DrivenWorker) -> None:
    last = chain(worker, ["a", "b", "c"])
    with pytest.raises(Refused, match="agent a is already in the call chain"):
        agent_calls.call(last, "a", "go on")


def test_a_run_that_is_over_calls_nobody(worker: DrivenWorker) -> None:
    make_agent("helper")
    caller = caller_of(worker)
    queue.cancel(caller.run)
    with pytest.raises(Refused):
        agent_calls.call(caller, "helper", "go")
    assert Run.objects.filter(parent=caller.run_id).count() == 0


def test_the_context_holds_no_secret_of_the_caller_s(worker: DrivenWorker) -> None:
    make_agent("helper")
    caller = caller_of(worker)
    agent_calls.call(caller, "helper", f"with {attempt_keys.secret(caller.run_id, 1)}")
    assert called(caller).trigger_context["context"] == "with [redacted]"


# --- what comes back ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("turns", "changes", "message"),
    [
        ([{"tools": [{"name": "exit", "arguments": {"code": 12}}]}, {"text": "no"}], {}, "agent run failed (EXIT_12)"),
        ([{"tools": [ask("well?")]}], {}, "agent run failed (CANCELED)"),
    ],
)
def test_a_called_run_that_failed_is_an_error_with_its_code(
    worker: DrivenWorker, turns: list[dict[str, Any]], changes: dict[str, Any], message: str
) -> None:
    make_agent("helper", turns=turns, **changes)
    caller = caller_of(worker)
    call_id = agent_calls.call(caller, "helper", "go")
    run = worker.drive(called(caller))
    if run.status == "waiting":
        queue.cancel(run)
    assert agent_calls.status(caller, call_id) == {"status": "error", "errorMessage": message}


def test_a_called_run_out_of_time_is_a_call_that_timed_out(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    turns = [{"tools": [returns("early")]}, {"text": "done"}]
    make_agent("helper", turns=turns, limits={"wall_seconds": 60}, retry="never")
    caller = caller_of(worker)
    call_id = agent_calls.call(caller, "helper", "go")
    worker.answer_one()
    driven_clock.forward(61)
    worker.drive(called(caller))
    assert agent_calls.status(caller, call_id) == {"status": "error", "errorMessage": "call timed out"}


def test_a_long_return_value_comes_whole(worker: DrivenWorker) -> None:
    value = "x" * 300_000
    make_agent("helper", turns=[{"tools": [returns(value)]}, {"text": "done"}])
    caller = caller_of(worker)
    call_id = agent_calls.call(caller, "helper", "go")
    worker.drive(called(caller))
    assert agent_calls.status(caller, call_id) == {"status": "completed", "returnValue": value}


def test_nobody_sees_another_s_call(worker: DrivenWorker) -> None:
    make_agent("helper")
    caller, stranger = caller_of(worker), caller_of(worker, "stranger")
    call_id = agent_calls.call(caller, "helper", "go")
    for asked, name in ((stranger, call_id), (caller, str(uuid.uuid4())), (caller, called(caller).pk), (caller, "")):
        with pytest.raises(NoSuchCall):
            agent_calls.status(asked, name)
    assert agent_calls.status(caller, call_id) == {"status": "pending"}


# --- parked for a call --------------------------------------------------------------------------------------------


def parked(worker: DrivenWorker, seconds: int = 3600, **changes: Any) -> tuple[Run, Run]:
    """A caller that waits for the end of its call, and the run it waits for, which waits for an answer."""
    turns = [{"tools": [ask("well?")]}, {"tools": [returns("at last")]}, {"text": "done"}]
    make_agent("helper", turns=turns, **changes)
    agent = make_agent("caller", turns=[{"tools": [call()]}, {"tools": [ask("go on?")]}, {"text": "done"}])
    run = worker.drive(submit(agent))
    helper = Run.objects.get(parent=run)
    waits = check(agent_calls.id_of(helper.pk), wait_seconds=seconds)
    turns = [{"tools": [call()]}, {"tools": [ask("go on?")]}, {"tools": [waits]}, {"text": "done"}]
    AgentFile.objects.filter(version=agent.version).update(content=yaml.safe_dump({"turns": turns}).encode())
    queue.respond(run, "yes")
    return worker.drive(run), reload(helper)


def test_a_parked_caller_holds_no_slot_and_goes_on_when_the_call_is_over(worker: DrivenWorker) -> None:
    run, helper = parked(worker)
    assert (run.status, run.wait_reason, run.has_slot, helper.status) == ("waiting", "handoff", False, "waiting")
    queue.respond(helper, "yes")
    run = worker.drive(run)
    assert run.status == "finished"
    assert told(run)[-1] == ('{"status": "completed", "returnValue": "at last"}', False)


@pytest.mark.postgresql
def test_the_sweep_wakes_a_parked_caller_whose_bell_was_lost(worker: DrivenWorker) -> None:
    run, helper = parked(worker)
    queue.respond(helper, "yes")
    while reload(helper).status != "finished":
        worker.answer_one()
    worker.rung.bells.clear()
    worker.sweep()
    assert worker.drive(run).status == "finished"


def test_a_call_that_takes_too_long_is_told_as_it_stands(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    run, helper = parked(worker, seconds=60)
    driven_clock.forward(30)
    worker.sweep()
    assert worker.drive(run).status == "waiting"
    driven_clock.forward(31)
    worker.sweep()
    run = worker.drive(run)
    assert (run.status, reload(helper).status) == ("finished", "waiting")
    assert told(run)[-1] == ('{"status": "running"}', False)


def test_a_parked_caller_can_be_interrupted(worker: DrivenWorker) -> None:
    run, _ = parked(worker)
    inputs.send(run, "never mind", InputMode.INTERRUPT, trigger=TriggerKind.API)
    run = worker.drive(run)
    assert run.status == "finished"
    assert told(run)[-1][0].startswith("[interrupted")


def test_a_deleted_call_is_not_waited_for(worker: DrivenWorker) -> None:
    run, helper = parked(worker)
    queue.delete(helper, force=True)
    worker.rung.bells.clear()
    Attempt.objects.filter(run=helper).update(has_workspace=False)
    queue.purge(helper.pk)
    worker.sweep()
    run = worker.drive(run)
    assert told(run)[-1] == ("call not found", True)


# --- who ends with whom -------------------------------------------------------------------------------------------


@pytest.mark.postgresql
def test_what_a_canceled_run_has_called_is_canceled_to_any_depth(worker: DrivenWorker) -> None:
    last = chain(worker, ["a", "b", "c"])
    make_agent("d", turns=[{"tools": [ask("well?")]}])
    agent_calls.call(last, "d", "go on")
    first = Run.objects.get(agent__name="a")
    queue.cancel(first)
    worker.drive(first)
    assert set(Run.objects.values_list("status", flat=True)) == {"canceled"}


@pytest.mark.postgresql
def test_the_sweep_cancels_it_where_the_bell_was_lost(worker: DrivenWorker) -> None:
    chain(worker, ["a", "b", "c"])
    queue.cancel(Run.objects.get(agent__name="a"))
    worker.rung.bells.clear()
    worker.sweep()
    worker.rung.bells.clear()
    worker.sweep()
    assert set(Run.objects.values_list("status", flat=True)) == {"canceled"}


def test_a_caller_that_finishes_or_fails_leaves_its_calls_running(worker: DrivenWorker) -> None:
    make_agent("helper", turns=[{"tools": [ask("well?")]}], scale=2)
    ends: list[tuple[str, list[dict[str, Any]]]] = [
        ("finishes", [{"tools": [call()]}, {"text": "done"}]),
        ("fails", [{"tools": [call(), {"name": "exit", "arguments": {}}]}, {"text": "no"}]),
    ]
    for name, turns in ends:
        worker.drive(submit(make_agent(name, turns=turns)))
    worker.sweep()
    assert list(Run.objects.exclude(parent=None).values_list("status", flat=True)) == ["waiting", "waiting"]


# --- at the same time ---------------------------------------------------------------------------------------------


@pytest.mark.postgresql
def test_calls_at_the_same_time_never_overfill_the_line(worker: DrivenWorker) -> None:
    """One slot in use, one place in the line: of six callers one gets it, and five are told."""
    helper = make_agent("helper", max_work_queue=1, turns=[{"tools": [ask("well?")]}])
    submit(helper)
    lifecycle.claim(helper.pk, owner=worker.owner, host_id=worker.host_id)
    callers = [caller_of(worker, f"caller-{number}") for number in range(6)]

    def call_now(caller: Attempt) -> str:
        try:
            return agent_calls.call(caller, "helper", "go")
        except Refused as refused:
            return str(refused)
        finally:
            connection.close()

    with ThreadPoolExecutor(len(callers)) as threads:
        answers = list(threads.map(call_now, callers, timeout=PATIENCE))
    assert answers.count("queue full") == 5
    assert Run.objects.filter(agent=helper, status="pending").count() == 1
