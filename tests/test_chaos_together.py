"""The judge of `make chaos` sees what runs did to each other: shared locks, calls, lent slots."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from chaos import together
from chaos.errands import Call, Lock
from chaos.faults import Happened
from chaos.findings import Finding
from chaos.model import Attempt, Told
from chaos.records import Event, Evidence, Run
from chaos.senders import Promise
from chaos.work import Plan, plans

ALL = plans(1, 10, seconds=10, agents=["dev", "ops"])
LOCKER, OTHER, BY_COMMAND, BY_TOOL = ALL[2], ALL[7], ALL[3], ALL[4]
CALL_ID, CALLED = "0190a0b0-0000-8000-8000-000000000000", "run_called"


KEY = next(command.key for command in LOCKER.commands if isinstance(command, Lock))


def run(run_id: str, *told: tuple[str, dict[str, Any]], status: str = "finished") -> Run:
    events = tuple(Event(number, kind, data, 1000.0 + number) for number, (kind, data) in enumerate(told, start=1))
    return Run(run_id, status, "", "", len(events), events)


def command(script: str, printed: str, call: str = "1") -> list[tuple[str, dict[str, Any]]]:
    return [
        ("tool.start", {"callId": call, "toolName": "bash", "toolInput": {"command": script}}),
        ("output", {"callId": call, "text": printed}),
        ("tool.end", {"callId": call, "success": True}),
    ]


def locked(run_id: str, plan: Plan, printed: str) -> tuple[Promise, Run]:
    script = next(command.script for command in plan.commands if isinstance(command, Lock))
    return Promise(plan, ((run_id,),), 1), run(run_id, *command(script, printed))


def evidence(*known: tuple[Promise, Run], faults: tuple[Happened, ...] = ()) -> Evidence:
    return Evidence([promise for promise, _ in known], {run.id: run for _, run in known}, [], faults)


def found(of: Evidence) -> list[tuple[str, str]]:
    return [(finding.kind, finding.about) for finding in together.findings(of)]


def span(key: str, began: float, ended: float) -> str:
    return f"got {key} {began:.9f}\nletting {key} {ended:.9f}\n"


# --- locks ------------------------------------------------------------------------------------------------------


def test_holders_one_after_the_other_are_as_it_should_be() -> None:
    first, second = locked("run_1", LOCKER, span(KEY, 5.0, 6.0)), locked("run_2", OTHER, span(KEY, 6.001, 7.0))
    assert found(evidence(first, second)) == []
    elsewhere = locked("run_2", OTHER, span("another", 5.5, 7.0))
    assert found(evidence(first, elsewhere)) == []


def test_two_holders_at_one_time_are_a_double() -> None:
    first, second = locked("run_1", LOCKER, span(KEY, 5.0, 6.0)), locked("run_2", OTHER, span(KEY, 5.999, 7.0))
    assert found(evidence(first, second)) == [("doubled", "run_2")]
    within = locked("run_2", OTHER, span(KEY, 5.1, 5.2) + span(KEY, 5.3, 5.4))
    assert found(evidence(first, within)) == [("doubled", "run_2")] * 2


def test_a_holder_whose_sandbox_was_killed_held_it_until_then() -> None:
    first, second = locked("run_1", LOCKER, f"got {KEY} 5.0\n"), locked("run_2", OTHER, span(KEY, 6.0, 7.0))
    killed = (Happened("sandbox", "kill", 6.5, 6.5, run_ids=("run_1",)),)
    assert found(evidence(first, second)) == []
    assert found(evidence(first, second, faults=killed)) == [("doubled", "run_2")]


@pytest.mark.parametrize(
    ("printed", "lost"),
    [
        pytest.param("tried rlock 6\ntried rlock 5\n", 0, id="a gateway that was away"),
        pytest.param("tried runlock 6\ntried runlock 2\n", 0, id="a release whose answer was lost"),
        pytest.param("tried runlock 2\n", 1, id="a lock that was gone at its release"),
        pytest.param("tried rlock-heartbeat 6\ntried rlock-heartbeat 2\n", 1, id="a lock that was gone in between"),
        pytest.param("tried runlock 1\n", 1, id="a lock that another had"),
        pytest.param("tried rlock 3\n", 1, id="a secret that was nobody's"),
    ],
)
def test_a_lock_that_was_answered_and_is_gone_is_lost(printed: str, lost: int) -> None:
    assert found(evidence(locked("run_1", LOCKER, printed))) == [("lost", "run_1")] * lost


# --- slots ------------------------------------------------------------------------------------------------------


def test_a_slot_that_was_lent_and_never_came_back_is_left() -> None:
    for told, left in (("lent back lent given_up", 0), ("lent", 1), ("lent back lent", 1)):
        events: list[tuple[str, dict[str, Any]]] = [(f"slot.{word}", {}) for word in told.split()]
        known = (Promise(LOCKER, (("run_1",),), 1), run("run_1", *events))
        assert found(evidence(known)) == [("left", "run_1")] * left


# --- calls ------------------------------------------------------------------------------------------------------


def call(target: Plan, run_id: str = CALLED, call_id: str = CALL_ID) -> tuple[str, dict[str, Any]]:
    return "call", {"callId": call_id, "run": run_id, "context": f"{target.token}\n"}


def called(plan: Plan, printed: str, *calls: tuple[str, dict[str, Any]], results: dict[str, str]) -> Evidence:
    """The plan's run has made these calls; `printed` by its command, `results` as its model was shown them."""
    script = next((each.script for each in plan.commands if isinstance(each, Call)), "")
    caller = run("run_1", *command(script, printed), *calls)
    shown = {f"toolu_{number}": Told(name, (text,)) for number, (name, text) in enumerate(results.items())}
    known = {"run_1": caller, CALLED: run(CALLED), "run_again": run("run_again")}
    return Evidence([Promise(plan, (("run_1",),), 1)], known, [Attempt(plan.token, "toolu_0", shown)], [])


def answered(value: str | None, status: str = "completed") -> dict[str, Any]:
    return {"status": status, **({} if value is None else {"returnValue": value})}


def by_command(value: str | None, printed: str = "", *more: tuple[str, dict[str, Any]]) -> Evidence:
    assert BY_COMMAND.callee is not None
    script = next(each.script for each in BY_COMMAND.commands if isinstance(each, Call))
    told = f"{printed}called {CALL_ID}\n{json.dumps({CALL_ID: answered(value)})}\n"
    return called(BY_COMMAND, told, call(BY_COMMAND.callee), *more, results={script: told})


def by_tool(value: str | None, **changes: str) -> Evidence:
    assert BY_TOOL.callee is not None
    results = {"call_agent": json.dumps({"ok": True, "callId": CALL_ID}), "check_call": json.dumps(answered(value))}
    return called(BY_TOOL, "", call(BY_TOOL.callee), results={**results, **changes})


def value_of(plan: Plan) -> str:
    assert plan.callee is not None
    return plan.callee.value


def test_a_call_whose_value_came_back_whole_is_as_it_should_be() -> None:
    for known in (by_command(value_of(BY_COMMAND)), by_tool(value_of(BY_TOOL))):
        assert found(known) == []
        (promise,) = together.promised_by_calls(known)
        assert (promise.run_ids, promise.allowed) == ([CALLED], 1)


@pytest.mark.parametrize(
    "known",
    [
        pytest.param(by_command(value_of(BY_COMMAND)[:-1]), id="the last sign of a command's"),
        pytest.param(by_tool(value_of(BY_TOOL)[1:]), id="the first sign of a tool's"),
        pytest.param(by_tool(None), id="all of it"),
        pytest.param(by_tool("", check_call=json.dumps(answered(None, "running"))), id="the end of the waiting"),
        pytest.param(by_tool("", call_agent=json.dumps({"ok": True, "callId": "none"})), id="the call itself"),
    ],
)
def test_a_value_that_is_cut_or_did_not_come_is_lost(known: Evidence) -> None:
    assert found(known) == [("lost", "run_1")]


def test_a_value_may_go_with_a_killed_sandbox_and_not_otherwise_change() -> None:
    killed = [Happened("sandbox", "kill", 1.0, 1.0, run_ids=(CALLED,))]
    assert found(replace(by_tool(None), faults=killed)) == []
    assert found(replace(by_tool("else"), faults=killed)) == [("lost", "run_1")]


def test_each_try_that_nobody_answered_may_have_started_a_run() -> None:
    assert BY_COMMAND.callee is not None
    again = call(BY_COMMAND.callee, "run_again", "another")
    for printed, allowed in (("", 1), ("tried alcall 6\n", 2), ("tried alcall 1\n", 1)):
        (promise,) = together.promised_by_calls(by_command(value_of(BY_COMMAND), printed, again))
        assert (promise.run_ids, promise.allowed) == (["run_again", CALLED], allowed)


def test_a_finding_says_what_and_whose() -> None:
    first, second = locked("run_1", LOCKER, span(KEY, 5.0, 6.0)), locked("run_2", OTHER, span(KEY, 5.5, 7.0))
    says = f"got {KEY} 0.500 s before run_1 let it go"
    assert list(together.findings(evidence(first, second))) == [Finding("doubled", "run_2", says)]
