"""`make chaos`: its judge sees each loss, double and gap it is shown, and a short run of it ends well."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from chaos.errands import Ask
from chaos.faults import Done, Fault, Happened, Monkey, Nothing
from chaos.judge import Verdict, judge
from chaos.model import Attempt, Player, Told
from chaos.records import Event, Evidence, Run
from chaos.senders import Promise
from chaos.work import LEDGER, Plan, plans
from tests.conftest import until
from tests.doubles.anthropic import MockAnthropic

ROOT = Path(__file__).parents[1]
PLAN, OTHER = plans(1, 2, seconds=10, agents=["dev"])
RUN, OTHER_RUN = "run_1", "run_2"
LOST = "[interrupted: the sandbox was lost]"
LINE = re.compile(r"runs 10, lost 0, doubled 0, events missing 0, left behind 0, longest stall \d+\.\d s\n")
STARTED_AT = 1_000.0  # of a run, in seconds
STEP = 0.1  # seconds between its events


PAUSE = [
    ("status.change", {"from": "processing", "to": "waiting"}),
    ("status.change", {"from": "waiting", "to": "processing"}),
]

# --- made-up records --------------------------------------------------------------------------------------------


def seen(plan: Plan, **lost: str) -> Attempt:
    """What the model was shown of a run as planned; `lost` are results of calls that were not, by their place."""
    results = {command.script: output_of(command) for command in plan.commands}
    results[LEDGER] = "".join(f"{command.token}\n" for command in plan.commands)
    calls = {f"toolu_{plan.token}_{place}": Told(*each) for place, each in enumerate(calls_of(results, lost))}
    return Attempt(plan.token, f"toolu_{plan.token}_0", calls)


def output_of(command: Ask) -> str:
    """What the plan says: these runs are without errands."""
    assert command.output is not None
    return command.output


def calls_of(results: dict[str, str], lost: dict[str, str]) -> list[tuple[str, tuple[str, ...]]]:
    return [(script, (lost.get(f"call_{place}", text),)) for place, (script, text) in enumerate(results.items())]


def events_of(plan: Plan) -> tuple[Event, ...]:
    """What the installation says of a run as planned."""
    told: list[tuple[str, dict[str, Any]]] = [change(None, "pending"), change("pending", "processing")]
    asked = [[(command.script, output_of(command)) for command in turn.commands] for turn in plan.turns]
    asked.append([(LEDGER, "".join(f"{command.token}\n" for command in plan.commands))])
    for turn, commands in enumerate(asked):
        told += [("model.start", {"turn": turn + 1}), ("model.turn", {"position": turn})]
        for index, (script, output) in enumerate(commands):
            call = {"callId": f"{turn}-{index}"}
            told += [("tool.start", {**call, "toolInput": {"command": script}}), ("output", {**call, "text": output})]
            told += [("tool.end", {**call, "success": True})]
    told += [("model.start", {"turn": len(asked) + 1}), ("model.turn", {}), change("processing", "finished")]
    return tuple(
        Event(number, kind, data, STARTED_AT + number * STEP) for number, (kind, data) in enumerate(told, start=1)
    )


def change(old: str | None, new: str) -> tuple[str, dict[str, Any]]:
    return "status.change", {"from": old, "to": new}


def ran(run_id: str, plan: Plan) -> Run:
    events = events_of(plan)
    return Run(run_id, "finished", plan.answer, "", len(events), events)


def healthy() -> Evidence:
    """Two runs, of which everything is as planned."""
    return Evidence(
        promises=[Promise(PLAN, ((RUN,),), 1), Promise(OTHER, ((OTHER_RUN,), (OTHER_RUN,)), 3)],
        runs={RUN: ran(RUN, PLAN), OTHER_RUN: ran(OTHER_RUN, OTHER)},
        attempts=[seen(PLAN), seen(OTHER)],
        faults=[Happened("worker", "kill", STARTED_AT, STARTED_AT + 1)],
    )


def with_run(**changes: Any) -> Evidence:
    """The first run is otherwise."""
    evidence = healthy()
    return replace(evidence, runs={**evidence.runs, RUN: replace(evidence.runs[RUN], **changes)})


def with_events(*events: Event) -> Evidence:
    return with_run(events=events)


def with_attempt(attempt: Attempt) -> Evidence:
    """The model was shown something else of the first run."""
    return replace(healthy(), attempts=[attempt, seen(OTHER)])


def killed_sandbox(evidence: Evidence) -> Evidence:
    return replace(evidence, faults=[Happened("sandbox", "kill", STARTED_AT, STARTED_AT, run_ids=(RUN,))])


def counts(verdict: Verdict) -> tuple[int, int, int, int]:
    """Lost, doubled, missing, left."""
    return verdict.count("lost"), verdict.count("doubled"), verdict.count("missing"), verdict.count("left")


def place_of(kind: str, nth: int = 0) -> int:
    """Where the first run's nth event of a type stands among its events."""
    return [place for place, event in enumerate(events_of(PLAN)) if event.type == kind][nth]


def without(place: int) -> Evidence:
    events = events_of(PLAN)
    return with_events(*events[:place], *events[place + 1 :])


def with_data(place: int, **data: Any) -> Evidence:
    events = list(events_of(PLAN))
    events[place] = replace(events[place], data={**events[place].data, **data})
    return with_events(*events)


def with_output(changed: Callable[[list[str]], Sequence[str]]) -> Evidence:
    """The long command's lines are otherwise, in its event."""
    place = place_of("output", 1)
    return with_data(place, text="".join(changed(output_of(PLAN.commands[1]).splitlines(keepends=True))))


# --- the judge --------------------------------------------------------------------------------------------------


def test_runs_as_planned_give_a_line_of_zeros() -> None:
    verdict = judge(healthy())
    assert [str(finding) for finding in verdict.findings] == []
    assert verdict.good
    assert verdict.second_attempts == 0
    assert verdict.line() == "runs 2, lost 0, doubled 0, events missing 0, left behind 0, longest stall 0.1 s"


@pytest.mark.parametrize(
    "evidence",
    [
        pytest.param(replace(healthy(), runs={OTHER_RUN: ran(OTHER_RUN, OTHER)}), id="it is not there"),
        pytest.param(with_run(output="something else"), id="another answer"),
        pytest.param(with_attempt(seen(PLAN, call_1=LOST)), id="a command given up, and no sandbox killed"),
        pytest.param(with_attempt(seen(PLAN, call_0=LOST)), id="the first command given up"),
    ],
)
def test_a_run_that_is_not_as_promised_is_lost(evidence: Evidence) -> None:
    assert counts(judge(evidence)) == (1, 0, 0, 0)


def test_a_run_that_finished_without_the_model_is_lost() -> None:
    assert judge(replace(healthy(), attempts=[seen(OTHER)])).count("lost") == 1


def test_a_sender_that_never_got_an_answer_has_lost_its_run() -> None:
    evidence = healthy()
    alone = replace(evidence, runs={OTHER_RUN: evidence.runs[OTHER_RUN]}, attempts=[seen(OTHER)])
    assert counts(judge(replace(alone, promises=[Promise(PLAN, (), 9), evidence.promises[1]]))) == (1, 0, 0, 0)


def test_a_run_that_is_not_over_is_lost() -> None:
    assert counts(judge(with_run(status="processing", events=events_of(PLAN)[:-1])))[0] == 1


def test_a_run_that_failed_is_lost_unless_its_sandbox_was_killed() -> None:
    events = events_of(PLAN)
    ended = replace(events[-1], data={"from": "processing", "to": "failed"})
    failed = with_run(status="failed", error="SANDBOX_LOST", output="", events=(*events[:-1], ended))
    assert counts(judge(failed)) == (1, 0, 0, 0)
    apart = judge(killed_sandbox(failed))
    assert counts(apart) == (0, 0, 0, 0)
    assert apart.ended_by_faults == {"SANDBOX_LOST": 1}
    runs = {**failed.runs, RUN: replace(failed.runs[RUN], error="INTERNAL_ERROR")}
    assert counts(judge(killed_sandbox(replace(failed, runs=runs)))) == (1, 0, 0, 0)


def test_a_command_lost_with_a_killed_sandbox_is_told_apart() -> None:
    verdict = judge(killed_sandbox(with_attempt(seen(PLAN, call_1=LOST))))
    assert counts(verdict) == (0, 0, 0, 0)
    assert verdict.lost_commands == 1
    twice = with_attempt(seen(PLAN, call_1=LOST, call_2=LOST))
    assert counts(judge(killed_sandbox(twice))) == (1, 0, 0, 0)


def test_a_command_whose_effect_is_gone_is_lost() -> None:
    ledger = f"call_{len(PLAN.commands)}"
    gone = "".join(f"{command.token}\n" for command in PLAN.commands[1:])
    verdict = judge(with_attempt(seen(PLAN, **{ledger: gone})))
    assert verdict.count("lost") == 1
    assert PLAN.commands[0].token in str(verdict.findings[0])


def test_a_line_twice_in_the_ledger_is_a_double() -> None:
    ledger = f"call_{len(PLAN.commands)}"
    twice = "".join(f"{command.token}\n" for command in [*PLAN.commands, PLAN.commands[1]])
    assert judge(with_attempt(seen(PLAN, **{ledger: twice}))).count("doubled") == 1


def test_a_request_that_started_two_runs_is_a_double() -> None:
    evidence = healthy()
    promises = [Promise(PLAN, ((RUN,), ("run_3",)), 2), evidence.promises[1]]
    twins = replace(evidence, promises=promises, runs={**evidence.runs, "run_3": ran("run_3", PLAN)})
    assert counts(judge(twins)) == (0, 1, 0, 0)


def test_a_run_nobody_was_told_of_is_a_double() -> None:
    evidence = healthy()
    assert counts(judge(replace(evidence, runs={**evidence.runs, "run_3": ran("run_3", PLAN)}))) == (0, 1, 0, 0)


def test_a_call_that_started_twice_is_a_double() -> None:
    events, place = list(events_of(PLAN)), place_of("tool.start")
    turn = place_of("model.turn")
    events[turn] = replace(events[place], id=events[turn].id)
    assert counts(judge(with_events(*events))) == (0, 1, 0, 0)


def test_a_result_that_changed_is_a_double() -> None:
    attempt = seen(PLAN)
    first = attempt.calls[attempt.first_call]
    attempt.calls[attempt.first_call] = replace(first, results=(LOST, *first.results))
    assert counts(judge(with_attempt(attempt))) == (0, 1, 0, 0)


def test_each_event_that_is_missing_or_there_twice_counts() -> None:
    events = events_of(PLAN)
    assert counts(judge(without(place_of("model.turn")))) == (0, 0, 1, 0)
    assert counts(judge(with_run(event_count=len(events) + 2))) == (0, 0, 2, 0)
    turn = events[place_of("model.turn")]
    assert counts(judge(with_events(*events[: turn.id], turn, *events[turn.id :]))) == (0, 0, 1, 0)
    assert counts(judge(with_events(events[1], events[0], *events[2:])))[2] > 0


@pytest.mark.parametrize(
    "changed",
    [
        pytest.param(lambda lines: lines[:-1], id="missing"),
        pytest.param(lambda lines: [*lines, lines[-1]], id="twice"),
        pytest.param(lambda lines: [lines[1], lines[0], *lines[2:]], id="out of order"),
    ],
)
def test_a_line_of_output_that_is_not_there_once_in_its_place_counts(
    changed: Callable[[list[str]], Sequence[str]],
) -> None:
    assert counts(judge(with_output(changed))) == (0, 0, 1, 0)


def test_a_line_the_model_was_not_shown_counts() -> None:
    half = output_of(PLAN.commands[1]).splitlines(keepends=True)[1:]
    assert counts(judge(with_attempt(seen(PLAN, call_1="".join(half))))) == (0, 0, 1, 0)


def test_a_call_without_an_end_counts() -> None:
    place = place_of("tool.end")
    events = events_of(PLAN)
    silent = replace(events[place], type="status.text", data={})
    assert counts(judge(with_events(*events[:place], silent, *events[place + 1 :]))) == (0, 0, 1, 0)


def test_a_change_of_status_that_cannot_be_counts() -> None:
    assert counts(judge(with_data(place_of("status.change", 1), to="finished")))[2] > 0
    assert counts(judge(with_data(place_of("status.change", 1), **{"from": "waiting"}))) == (0, 0, 1, 0)
    last = place_of("status.change", 2)
    assert counts(judge(with_data(last, to="failed"))) == (0, 0, 1, 0)


def test_a_container_that_stands_counts() -> None:
    assert counts(judge(replace(healthy(), left=["c0ffee", "a-volume"]))) == (0, 0, 0, 2)


def tried_again() -> Evidence:
    """The first run's first attempt failed after its first command, which the second attempt begins with again."""
    events, cut = events_of(PLAN), place_of("tool.end") + 1
    failed = Event(0, "attempt.failed", {"attempt": 1, "code": "SANDBOX_LOST"}, events[cut].at)
    between = [failed, *(replace(failed, type=kind, data=data) for kind, data in PAUSE)]
    told = [*events[:cut], *between, *events[2:]]
    numbered = [replace(event, id=number, at=STARTED_AT + number * STEP) for number, event in enumerate(told, start=1)]
    first = PLAN.commands[0]
    before = Attempt(PLAN.token, "toolu_before", {"toolu_before": Told(first.script, (output_of(first),))})
    evidence = with_run(events=tuple(numbered), event_count=len(numbered))
    return replace(evidence, attempts=[before, *evidence.attempts])


def test_second_attempts_are_told_apart() -> None:
    verdict = judge(tried_again())
    assert [str(finding) for finding in verdict.findings] == []
    assert verdict.second_attempts == 1


def test_an_attempt_the_run_says_nothing_of_is_a_double() -> None:
    evidence = healthy()
    again = Attempt(PLAN.token, "toolu_again", {"toolu_again": Told(LEDGER, ("nothing",))})
    assert counts(judge(replace(evidence, attempts=[again, *evidence.attempts]))) == (0, 1, 0, 0)


# --- stalls -----------------------------------------------------------------------------------------------------


def later(place: int, seconds: float) -> tuple[Event, ...]:
    """The first run's events, with a silence before the one at `place`."""
    events = events_of(PLAN)
    return (*events[:place], *(replace(event, at=event.at + seconds) for event in events[place:]))


def stall(place: int, seconds: float, *faults: Happened) -> float:
    found = judge(replace(with_events(*later(place, seconds)), faults=faults)).stall
    assert found.run_id in {RUN, OTHER_RUN}
    return found.seconds


def test_silence_at_work_is_a_stall_and_silence_in_line_is_none() -> None:
    place = place_of("tool.start")
    assert stall(place, 9.0) == pytest.approx(9.0 + STEP)
    assert judge(with_events(*later(place, 9.0))).stall.after == events_of(PLAN)[place - 1].id
    assert stall(place_of("status.change", 1), 9.0) < 1


def test_what_was_planned_is_no_stall() -> None:
    slow = next(turn for turn in PLAN.turns if turn.pace)
    answer = place_of("model.turn", PLAN.turns.index(slow))
    assert stall(answer, slow.seconds) == pytest.approx(STEP)
    assert stall(answer, slow.seconds + 3.0) == pytest.approx(3.0 + STEP)
    line = place_of("output", 1)
    assert stall(line, 3.0) == pytest.approx(3.0 + STEP - (PLAN.commands[1].pause or 0))


def test_the_time_without_a_database_is_no_stall_and_that_without_redis_is() -> None:
    place = place_of("tool.start")
    before = events_of(PLAN)[place - 1].at
    assert stall(place, 9.0, Happened("redis", "kill", before, before + 6)) == pytest.approx(9.0 + STEP)
    away = [
        Happened("database", "restart", before + 1, before + 5),
        Happened("database", "lock", before + 3, before + 7),
    ]
    assert stall(place, 9.0, *away) == pytest.approx(3.0 + STEP)


# --- faults -----------------------------------------------------------------------------------------------------


def fault(part: str, befall: Callable[[], Done] = lambda: ("", ())) -> Fault:
    return Fault(part, "hurt", befall)


def monkey(*faults: Fault, every: float = 0.001) -> Monkey:
    return Monkey(faults, random.Random(1), every)  # noqa: S311 - a seed is to repeat


def test_a_part_is_not_hurt_again_before_it_is_ready() -> None:
    mended, begun = threading.Event(), []

    def befall() -> Done:
        begun.append(time.monotonic())
        mended.wait()
        return "", ()

    hurting = monkey(fault("web", befall), fault("beat"))
    hurting.start()
    try:
        until(lambda: hurting.kinds()["hurt beat"] > 20)
        assert len(begun) == 1
        mended.set()
        until(lambda: len(begun) > 1)
    finally:
        mended.set()
        hurting.stop()
    assert {happened.ready < float("inf") for happened in hurting.happened} == {True}


def test_every_kind_of_fault_has_its_turn() -> None:
    names = [f"part-{number}" for number in range(7)]
    hurting = monkey(*map(fault, names))
    hurting.start()
    until(lambda: len(hurting.happened) >= 3 * len(names))
    hurting.stop()
    assert min(hurting.kinds()[f"hurt {name}"] for name in names) >= 2


def test_a_fault_that_had_nothing_to_hurt_has_not_happened() -> None:
    tried = []

    def befall() -> Done:
        tried.append(1)
        raise Nothing("no sandbox runs")

    hurting = monkey(fault("sandbox", befall))
    hurting.start()
    until(lambda: len(tried) > 3)
    hurting.stop()
    assert hurting.happened == []
    hurting.check()


def test_a_fault_that_cannot_be_made_ends_it_all() -> None:
    def befall() -> Done:
        raise FileNotFoundError("pg_ctl")

    hurting = monkey(fault("database", befall))
    hurting.start()
    until(lambda: hurting.broken)
    hurting.stop()
    with pytest.raises(FileNotFoundError):
        hurting.check()


# --- the work ---------------------------------------------------------------------------------------------------


def test_a_seed_makes_the_same_work_again() -> None:
    assert plans(7, 9, seconds=60, agents=["a", "b"]) == plans(7, 9, seconds=60, agents=["a", "b"])
    assert plans(7, 9, seconds=60, agents=["a", "b"]) != plans(8, 9, seconds=60, agents=["a", "b"])


def test_half_of_the_work_comes_by_webhook_for_every_agent() -> None:
    work = plans(1, 16, seconds=60, agents=["a", "b"])
    for agent in ("a", "b"):
        channels = [plan.channel for plan in work if plan.agent == agent]
        assert sorted(channels) == ["rest"] * 4 + ["webhook"] * 4


def test_a_command_prints_what_the_plan_says(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger"
    for command in PLAN.commands[2:]:
        script = command.script.replace("/workspace/ledger", str(ledger))
        printed = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout
        assert printed == command.output
    assert ledger.read_text().split() == [command.token for command in PLAN.commands[2:]]


def test_the_model_plays_the_plan_and_keeps_what_it_was_shown() -> None:
    player = Player([PLAN])
    with MockAnthropic(player.reply) as mock:
        messages: list[dict[str, Any]] = [{"role": "user", "content": f"Do {PLAN.token}."}]
        while calls := asked(mock.url, messages):
            results = [(call, result_of(call["input"]["command"])) for call in calls]
            said = [{"type": "tool_result", "tool_use_id": call["id"], "content": text} for call, text in results]
            messages += [{"role": "assistant", "content": calls}, {"role": "user", "content": said}]
    (attempt,) = player.attempts
    assert player.answered == {PLAN.token}
    assert [told.script for told in attempt.calls.values()] == [*(each.script for each in PLAN.commands), LEDGER]
    assert attempt.ledger == ["seen"]


def result_of(script: str) -> str:
    return "seen\n" if script == LEDGER else "ran\n"


def asked(url: str, messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The tool calls of the model's next answer."""
    body = {"model": "mock", "messages": messages}
    stream = httpx.post(f"{url}/v1/messages", json=body, timeout=30, trust_env=False).text
    calls: list[dict[str, Any]] = []
    for line in re.findall(r"^data: (.*)$", stream, re.MULTILINE):
        event = json.loads(line)
        if event["type"] == "content_block_start" and event["content_block"]["type"] == "tool_use":
            calls.append({**event["content_block"], "input": ""})
        elif event.get("delta", {}).get("type") == "input_json_delta":
            calls[-1]["input"] += event["delta"]["partial_json"]
    return [{**call, "input": json.loads(call["input"])} for call in calls]


# --- the whole --------------------------------------------------------------------------------------------------


@pytest.mark.box
@pytest.mark.engine
@pytest.mark.timeout(420)
def test_nothing_is_lost_doubled_or_left_while_parts_die() -> None:
    argv = [sys.executable, "-m", "chaos", "--runs", "10", "--minutes", "0.35", "--fault-every", "4", "--scale", "3"]
    with subprocess.Popen(argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            said, story = process.communicate()
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)  # it takes down what it has started
    assert LINE.fullmatch(said), f"{said}\n{story}"
    assert process.returncode == 0
    assert "second attempts 0\n" in story
    happened = re.search(r"faults: (.*)$", story, re.MULTILINE)
    assert happened is not None
    assert len(happened[1].split(", ")) >= 3, story
