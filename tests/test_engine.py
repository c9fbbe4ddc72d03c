"""Whole runs on a scripted model and the fake sandbox, driven bell by bell."""

from __future__ import annotations

import base64
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.db import connection

from agents import clock
from agents.models import Agent, AgentFile, AgentVersion
from runs import events, hands, leases, lifecycle, queue, transcript
from runs.calls.outcome import LOST
from runs.endings import MACHINERY_WAITS
from runs.engine import GO_ON
from runs.halt import Halt, Why
from runs.llm import ModelError, ModelUnavailable
from runs.models import Attempt, CallState, Event, Message, Run, SandboxState, ToolCall, WaitReason
from runs.sandbox.base import Sandbox, Spec
from runs.step import Step
from runs.tools.base import RESULT_CHARACTERS
from tests.conftest import PATIENCE, DrivenClock, DrivenWorker, PlayedModel, Points, meanwhile, other_worker, until
from tests.making import ask, bash, make_agent, said, status, submit

pytestmark = pytest.mark.django_db(transaction=True)

KEY = "sk-ant-api03-0123456789abcdef"
# Prints the second line once the file `go` is there.
GATED = "echo one; until [ -e go ]; do sleep 0.01; done; echo two"


def types(run: Run) -> list[str]:
    return [event["type"] for event in events.fetch(run.pk)]


def data(run: Run, type_: str) -> list[dict[str, Any]]:
    """What the run's events of one type say."""
    return [event["data"] for event in events.fetch(run.pk, limit=5000) if event["type"] == type_]


def printed(run: Run) -> str:
    return "".join(entry["text"] for entry in data(run, "output"))


def told(run: Run) -> list[tuple[str, bool]]:
    """What the model was told of its calls, and whether as an error."""
    bodies = Message.objects.filter(attempt__run=run, body__role="tool").order_by("position")
    parts = [part for message in bodies for part in message.body["parts"]]
    return [(part["text"], part["is_error"]) for part in parts]


def error_of(run: Run) -> tuple[str, str]:
    assert run.status == "failed", types(run)
    assert run.error is not None
    return run.error["code"], run.error["message"]


def reload(run: Run) -> Run:
    return Run.objects.get(pk=run.pk)


def workspace(worker: DrivenWorker, run: Run) -> Path:
    return worker.fake._workspace(Attempt.objects.get(run=run).sandbox_name)


def let_it_go_on(worker: DrivenWorker, run: Run) -> None:
    """To the command that waits for it, as GATED does."""
    (workspace(worker, run) / "go").touch()


# --- the loop -----------------------------------------------------------------------------------------------------


@pytest.mark.postgresql
def test_a_run_asks_acts_and_answers(worker: DrivenWorker) -> None:
    agent = make_agent(
        turns=[{"text": "look", "tools": [bash("echo hi; exit 3")]}, {"expect": ["hi", "exit code 3"], "text": "done"}]
    )
    run = worker.drive(submit(agent))
    assert (run.status, run.output, run.turns) == ("finished", "done", 2)
    assert types(run) == [
        "status.change", "status.change", "sandbox.start", "model.start", "model.turn", "sandbox.ready",
        "tool.start", "output", "tool.end", "model.start", "model.turn", "status.change",
    ]  # fmt: skip
    assert [event["id"] for event in events.fetch(run.pk)] == list(range(1, 13))
    assert not run.has_slot
    assert run.lease_owner == ""
    attempt = Attempt.objects.get()
    assert attempt.sandbox_state == SandboxState.GONE
    assert worker.engine.names() == []
    assert ToolCall.objects.get().state == CallState.DONE


def test_the_calls_of_one_turn_run_in_order_and_one_at_a_time(worker: DrivenWorker) -> None:
    calls = [bash("echo a >>log; sleep 0.1; cat log"), bash("echo b >>log; cat log"), status("last")]
    run = worker.drive(submit(make_agent(turns=[{"tools": calls}, {"text": "done"}])))
    assert told(run) == [("a\n", False), ("a\nb\n", False), ("ok", False)]
    steps = [(event["type"], event["data"]["callId"]) for event in events.fetch(run.pk) if "tool." in event["type"]]
    assert steps == [
        ("tool.start", "1-0"), ("tool.end", "1-0"), ("tool.start", "1-1"), ("tool.end", "1-1"),
        ("tool.start", "1-2"), ("tool.end", "1-2"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ({"name": "fly"}, "there is no tool 'fly'; there are bash, set_status"),
        ({"name": "read", "arguments": {"file_path": "x"}}, "there is no tool 'read'"),
        ({"name": "bash", "arguments": {"comand": "ls"}}, "command: Field required"),
        ({"name": "bash", "arguments": '{"command": "ls'}, "the arguments of bash are not a JSON object"),
        (bash("echo no; exit 4"), "no\n[exit code 4]"),
        (bash("echo slow; sleep 60", timeout=1), "slow\n[killed: still running after 1 s]"),
    ],
)
def test_a_call_that_fails_is_told_to_the_model_and_the_run_goes_on(
    worker: DrivenWorker, call: dict[str, Any], words: str
) -> None:
    agent = make_agent(turns=[{"tools": [call, status("next")]}, {"text": "done"}], tools=["bash", "set_status"])
    run = worker.drive(submit(agent))
    assert (run.status, run.output) == ("finished", "done")
    (text, is_error), after = told(run)
    assert is_error
    assert words in text
    assert after == ("ok", False)


@pytest.mark.postgresql
@pytest.mark.parametrize(
    ("call", "words"),
    [
        (bash("printf 'a\0b'"), r"""are not a JSON object: {"command": "printf 'a\u0000b'"}"""),
        (bash("echo \ud800"), r'are not a JSON object: {"command": "echo \ud800"}'),
        ({"name": "bash", "arguments": {"command": "echo", "timeout": float("nan")}}, "are not a JSON object"),
        ({"name": "ba\0sh", "arguments": {}}, "there is no tool"),
        ({"name": "x" * 500, "arguments": {}}, "there is no tool"),
    ],
)
def test_a_call_that_no_database_can_hold_is_told_to_the_model(
    worker: DrivenWorker, model: PlayedModel, call: dict[str, Any], words: str
) -> None:
    model.answers = [said("", call), said("done")]
    run = worker.drive(submit(make_agent()))
    assert (run.status, run.output) == ("finished", "done")
    ((text, is_error),) = told(run)
    assert is_error
    assert words in text
    assert worker.fake.commands == []


def test_an_answer_cut_at_the_output_limit_is_continued(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("The first half", stop="max_tokens"), said(" and more", stop="length"), said("the end")]
    run = worker.drive(submit(make_agent()))
    assert (run.status, run.output, run.turns) == ("finished", "the end", 3)
    assert [request.messages[-1]["parts"][-1].get("text") for request in model.asked[1:]] == [GO_ON, GO_ON]


def test_set_status_is_shown_at_once(worker: DrivenWorker) -> None:
    run = worker.drive(submit(make_agent(turns=[{"tools": [status("reading the issue")]}, {"text": "done"}])))
    assert run.status_text == "reading the issue"
    assert data(run, "status.text") == [{"text": "reading the issue"}]


def test_a_change_of_the_agent_does_not_change_a_run_under_way(worker: DrivenWorker) -> None:
    agent = make_agent(turns=[{"tools": [status("old")]}, {"text": "as I was"}])
    run = submit(agent)
    worker.answer_one()
    spec = {**agent.spec.dump(), "models": [{"provider": "scripted", "model": "new.yaml"}]}
    version = AgentVersion.objects.create(agent=agent, digest="new", spec=spec)
    AgentFile.objects.create(
        version=version, path="new.yaml", content=yaml.safe_dump({"turns": [{"text": "new"}]}).encode()
    )
    Agent.objects.filter(pk=agent.pk).update(version=version)
    assert worker.drive(run).output == "as I was"
    assert worker.drive(submit(Agent.objects.get(pk=agent.pk))).output == "new"


# --- limits -------------------------------------------------------------------------------------------------------


def talkative(turns: int, **changes: Any) -> Agent:
    """An agent that would answer after so many turns."""
    says = [*({"tools": [status(str(turn))]} for turn in range(1, turns)), {"text": "done"}]
    return make_agent(turns=says, **changes)


@pytest.mark.parametrize(
    ("limit", "of_the_task", "turns"),
    [(2, None, 2), (9, 2, 2), (1, 3, 3)],
)
def test_max_iterations(worker: DrivenWorker, limit: int, of_the_task: int | None, turns: int) -> None:
    run = worker.drive(submit(talkative(5, limits={"turns": limit}), max_turns=of_the_task))
    assert error_of(run) == ("MAX_ITERATIONS", f"no answer after {turns} model turns")
    assert run.turns == turns
    assert (run.error or {})["iteration"] == turns


@pytest.mark.parametrize(("limit", "of_the_task"), [(1, None), (0, 1)])
def test_the_request_after_the_budget_is_not_made(worker: DrivenWorker, limit: int, of_the_task: int | None) -> None:
    run = worker.drive(submit(talkative(5, limits={"tokens": limit}), token_budget=of_the_task))
    assert error_of(run)[0] == "BUDGET_EXCEEDED"
    assert (run.turns, types(run).count("model.start")) == (1, 1)


@pytest.mark.parametrize(
    ("limit", "of_the_task", "turns"),
    [
        ({"turns": 0, "tokens": 0, "wall_seconds": 0}, {}, 52),
        (
            {"turns": 1, "tokens": 1, "wall_seconds": 1},
            {"max_turns": 0, "token_budget": 0, "wall_seconds": 0},
            3,
        ),
    ],
)
def test_zero_is_no_limit(
    worker: DrivenWorker,
    driven_clock: DrivenClock,
    limit: dict[str, Any],
    of_the_task: dict[str, Any],
    turns: int,
) -> None:
    run = submit(talkative(turns, limits=limit), **of_the_task)
    worker.answer_one()
    driven_clock.forward(1_000_000)
    run = worker.drive(run)
    assert (run.status, run.turns, run.deadline_at) == ("finished", turns, None)


@pytest.mark.parametrize(("limit", "of_the_task"), [(60, None), (900, 60), (10, 60), (0, 60)])
def test_timeout_between_steps(
    worker: DrivenWorker, driven_clock: DrivenClock, limit: int, of_the_task: int | None
) -> None:
    run = submit(talkative(5, limits={"wall_seconds": limit}, retry="never"), wall_seconds=of_the_task)
    worker.answer_one()
    driven_clock.forward(50)
    worker.answer_one()
    assert reload(run).status == "processing"
    driven_clock.forward(11)
    run = worker.drive(run)
    code, message = error_of(run)
    assert code == "TIMEOUT"
    assert "its limit of time" in message
    assert worker.engine.names() == []


def test_timeout_in_the_middle_of_a_command(worker: DrivenWorker, points: Points, driven_clock: DrivenClock) -> None:
    run = submit(make_agent(turns=[{"tools": [bash(GATED)]}], limits={"wall_seconds": 60}))

    def time_passes() -> None:
        driven_clock.forward(61)
        worker.lease_thread.halt_overdue()

    points.after("output 1", time_passes)
    run = worker.drive(run)
    assert error_of(run)[0] == "TIMEOUT"
    assert printed(run) == "one\n"
    assert ToolCall.objects.get().state == CallState.LOST
    assert worker.engine.names() == []


def test_timeout_in_the_middle_of_a_model_request(
    worker: DrivenWorker, model: PlayedModel, driven_clock: DrivenClock
) -> None:
    never = Future[Any]()
    model.answers = [never]
    run = submit(make_agent(limits={"wall_seconds": 60}, retry="never"))

    def time_passes() -> None:
        until(lambda: model.asked)
        driven_clock.forward(61)
        worker.lease_thread.halt_overdue()

    with meanwhile(time_passes):
        run = worker.drive(run)
    assert error_of(run)[0] == "TIMEOUT"
    assert never.cancelled()
    assert run.estimated_tokens == run.input_tokens > 0


# --- the model's failures -----------------------------------------------------------------------------------------


def test_a_model_error_fails_the_run_with_its_code(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("", status("a")), ModelError("the prompt is too long", code="CONTEXT_TOO_LONG")]
    run = worker.drive(submit(make_agent()))
    assert error_of(run) == ("CONTEXT_TOO_LONG", "the prompt is too long")
    assert (run.turns, run.input_tokens, run.estimated_tokens) == (1, 100, 0)
    assert worker.engine.names() == []


@pytest.mark.parametrize(
    ("models", "code"),
    [([], "NO_MODEL"), ([{"provider": "anthropic", "model": "claude"}], "CREDENTIAL_MISSING")],
)
def test_without_model_or_key_nothing_is_started(worker: DrivenWorker, models: list[dict[str, str]], code: str) -> None:
    run = worker.drive(submit(make_agent(models=models)))
    assert error_of(run)[0] == code
    assert worker.fake.specs == {}
    assert types(run) == ["status.change"] * 3


def test_a_script_whose_expectation_does_not_hold_fails_the_run(worker: DrivenWorker) -> None:
    turns = [{"tools": [bash("echo blue")]}, {"expect": ["green"], "text": "done"}]
    code, message = error_of(worker.drive(submit(make_agent(turns=turns))))
    assert code == "SCRIPT_MISMATCH"
    assert "'green'" in message
    assert "blue" in message


@pytest.mark.parametrize(("retry_after", "seconds"), [(None, 5), (90.0, 90)])
def test_an_unavailable_model_parks_the_run_in_its_slot(
    worker: DrivenWorker,
    model: PlayedModel,
    driven_clock: DrivenClock,
    retry_after: float | None,
    seconds: int,
) -> None:
    model.answers = [ModelUnavailable("overloaded", retry_after=retry_after), said("done")]
    agent = make_agent()
    run, second = submit(agent), submit(agent)
    run = worker.drive(run)
    assert (run.status, run.wait_reason, run.has_slot) == ("waiting", "rate_limit", True)
    assert run.wake_at is not None
    assert timedelta(seconds=seconds - 2) < run.wake_at - clock.now() <= timedelta(seconds=seconds)
    assert data(run, "pause") == [{"code": "MODEL_UNAVAILABLE", "message": "overloaded", "seconds": seconds}]
    worker.sweep()
    assert [reload(run).status, reload(second).status] == ["waiting", "pending"]
    driven_clock.forward(seconds)
    worker.sweep()
    model.answers.append(said("second"))
    run = worker.drive(run)
    assert (run.status, run.output, run.turns, run.estimated_tokens) == ("finished", "done", 1, 0)
    assert reload(second).output == "second"


def test_a_model_that_stays_unavailable_fails_the_run(
    worker: DrivenWorker, model: PlayedModel, driven_clock: DrivenClock
) -> None:
    model.answers = [ModelUnavailable("overloaded") for _ in range(MACHINERY_WAITS + 1)]
    run = worker.drive(submit(make_agent()))
    for _ in range(MACHINERY_WAITS):
        assert run.status == "waiting"
        driven_clock.forward(301)
        worker.sweep()
        run = worker.drive(run)
    assert error_of(run) == ("MODEL_UNAVAILABLE", f"overloaded (after {MACHINERY_WAITS} tries)")
    assert run.tokens == 0


def test_progress_makes_the_machinery_s_patience_new(
    worker: DrivenWorker, model: PlayedModel, driven_clock: DrivenClock
) -> None:
    model.answers = [ModelUnavailable("no"), ModelUnavailable("no"), said("", status("a")), ModelUnavailable("no")]
    run = worker.drive(submit(make_agent(limits={"wall_seconds": 0})))
    for _ in range(2):
        driven_clock.forward(301)
        worker.sweep()
        run = worker.drive(run)
    assert [entry["seconds"] for entry in data(run, "pause")] == [5, 10, 5]


# --- the sandbox's failures ---------------------------------------------------------------------------------------


def test_an_engine_that_is_down_parks_the_run_until_it_is_back(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    worker.fake.down = True
    run = worker.drive(submit(make_agent(turns=[{"tools": [bash("echo hi")]}, {"text": "done"}])))
    assert (run.status, run.wait_reason, run.has_slot, run.turns) == ("waiting", "retry", True, 0)
    assert run.tokens == 0
    worker.fake.down = False
    driven_clock.forward(6)
    worker.sweep()
    run = worker.drive(run)
    assert (run.status, run.output) == ("finished", "done")
    assert printed(run) == "hi\n"


def test_an_engine_that_goes_down_in_a_command_loses_nothing(
    worker: DrivenWorker, points: Points, driven_clock: DrivenClock
) -> None:
    run = submit(make_agent(turns=[{"tools": [bash(f"echo ran >>ran; {GATED}; wc -l <ran")]}, {"text": "done"}]))

    def engine_stops() -> None:
        worker.fake.down = True
        let_it_go_on(worker, run)

    points.after("output 1", engine_stops)
    run = worker.drive(run)
    assert (run.status, run.wait_reason) == ("waiting", "retry")
    assert ToolCall.objects.get().state == CallState.STARTED
    worker.fake.down = False
    driven_clock.forward(6)
    worker.sweep()
    run = worker.drive(run)
    assert told(run) == [("one\ntwo\n1\n", False)]
    assert printed(run) == "one\ntwo\n1\n"


@pytest.mark.parametrize("sandbox", ["eager", "lazy"])
def test_a_missing_image_fails_the_run_before_a_token_is_spent(worker: DrivenWorker, sandbox: str) -> None:
    worker.fake.images = ("other:latest",)
    run = worker.drive(submit(make_agent(turns=[{"text": "done"}], image="mine:1", sandbox=sandbox)))
    assert error_of(run) == ("IMAGE_MISSING", "No such image: mine:1")
    assert (run.tokens, types(run).count("model.start")) == (0, 0)


def test_a_command_whose_sandbox_goes_is_lost_and_never_started_again(worker: DrivenWorker, points: Points) -> None:
    turns = [
        {"tools": [bash(f"echo ran >>ran; {GATED}")]},
        {"expect": ["It may have had effects"], "tools": [bash("cat ran")]},
        {"text": "done"},
    ]
    run = submit(make_agent(turns=turns))
    points.after("output 1", lambda: worker.fake.remove(Attempt.objects.get().sandbox_name))
    run = worker.drive(run)
    assert run.status == "finished"
    assert told(run) == [(LOST, True), ("ran\n", False)]  # the workspace is the same
    assert [call.state for call in ToolCall.objects.order_by("pk")] == [CallState.LOST, CallState.DONE]
    assert types(run).count("sandbox.lost") == 1
    assert types(run).count("sandbox.ready") == 2


def test_a_command_whose_records_are_wiped_is_lost_and_the_next_has_a_new_sandbox(worker: DrivenWorker) -> None:
    wipe = 'echo ran >>ran; rm -rf "$AGENTFLEET_RECORDS"/*'
    turns = [{"tools": [bash(wipe), bash("cat ran")]}, {"text": "done"}]
    run = worker.drive(submit(make_agent(turns=turns)))
    assert run.status == "finished"
    assert told(run) == [(LOST, True), ("ran\n", False)]
    assert [call.state for call in ToolCall.objects.order_by("pk")] == [CallState.LOST, CallState.DONE]
    assert types(run).count("sandbox.lost") == 1
    assert worker.engine.names() == []


def test_a_sandbox_that_is_lost_again_and_again_fails_the_run(worker: DrivenWorker, points: Points) -> None:
    run = submit(make_agent(turns=[{"tools": [bash(GATED)]} for _ in range(9)]))
    for number in range(1, 5):
        points.after(f"output {number}", lambda: worker.fake.remove(Attempt.objects.get().sandbox_name))
    run = worker.drive(run)
    assert error_of(run)[0] == "SANDBOX_LOST"
    assert told(run) == [(LOST, True)] * 4


@pytest.mark.parametrize("quicker", ["model", "sandbox", "neither"])
def test_an_eager_sandbox_is_started_once_whoever_is_quicker(
    worker: DrivenWorker, model: PlayedModel, monkeypatch: pytest.MonkeyPatch, quicker: str
) -> None:
    answer, start = Future[Any](), worker.fake.start
    model.answers = [answer, said("done")]

    def answered() -> None:
        answer.set_result(said("", bash("echo hi")))

    def play(spec: Spec) -> Sandbox:
        if quicker == "model":
            answered()
            until(ToolCall.objects.exists)
            connection.close()
        return start(spec)

    def wait_first(halt: Halt, *futures: Future[Any]) -> None:
        """Both are there before anybody looks."""
        if answer in futures and quicker == "neither":
            until(futures[-1].done)
            answered()
        plain(halt, *futures)

    plain = Halt.wait_first
    monkeypatch.setattr(worker.fake, "start", play)
    monkeypatch.setattr(Halt, "wait_first", wait_first)
    run = submit(make_agent())

    def answered_last() -> None:
        if quicker == "sandbox":
            until(lambda: data(run, "sandbox.ready"))
            answered()

    with meanwhile(answered_last):
        run = worker.drive(run)
    assert (run.status, printed(run)) == ("finished", "hi\n")
    seen = types(run)
    assert (seen.count("sandbox.start"), seen.count("sandbox.ready")) == (1, 1)
    assert seen.index("sandbox.ready") < seen.index("tool.start")


def test_a_lazy_sandbox_starts_with_the_first_tool_that_needs_it(worker: DrivenWorker) -> None:
    turns = [{"tools": [status("thinking")]}, {"tools": [bash("echo hi")]}, {"text": "done"}]
    run = submit(make_agent(turns=turns, sandbox="lazy"))
    worker.answer_one()
    worker.answer_one()
    worker.answer_one()
    assert worker.fake.specs == {}
    run = worker.drive(run)
    assert (run.status, printed(run)) == ("finished", "hi\n")
    seen = types(run)
    assert (
        seen.index("sandbox.start")
        == seen.index("sandbox.ready") - 1
        == len(seen) - 1 - seen[::-1].index("tool.start") - 2
    )
    assert worker.engine.names() == []


def test_a_lazy_agent_speaks_to_its_model_without_an_engine(worker: DrivenWorker) -> None:
    worker.fake.down = True
    run = worker.drive(submit(make_agent(turns=[{"text": "done"}], sandbox="lazy")))
    worker.fake.down = False
    assert run.status == "finished"


def test_an_agent_without_sandbox_tools_never_starts_one(worker: DrivenWorker) -> None:
    run = worker.drive(submit(talkative(3, tools=["set_status"])))
    assert run.status == "finished"
    assert worker.fake.specs == {}
    assert "sandbox.start" not in types(run)


# --- output -------------------------------------------------------------------------------------------------------


def test_of_a_long_output_the_model_gets_head_and_tail_and_the_events_their_cap(worker: DrivenWorker) -> None:
    numbers = "".join(f"{number}\n" for number in range(1, 200_001))
    run = worker.drive(submit(make_agent(turns=[{"tools": [bash("seq 1 200000")]}, {"text": "done"}])))
    ((text, _),) = told(run)
    half = RESULT_CHARACTERS // 2
    note = f"\n[… {len(numbers) - 2 * half} characters left out …]\n"
    assert text == numbers[:half] + note + numbers[-half:]
    assert printed(run) == numbers[: hands.KEPT]
    assert data(run, "output.cut") == [{"callId": "1-0", "kept": hands.KEPT}]


def test_a_command_longer_than_one_stretch_is_followed_by_several_steps(
    worker: DrivenWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hands, "STRETCH", 0.15)
    command = "echo ran >>ran; for i in 1 2 3 4 5 6; do echo $i; sleep 0.1; done; wc -l <ran"
    run = worker.drive(submit(make_agent(turns=[{"tools": [bash(command)]}, {"text": "done"}])))
    assert told(run) == [("1\n2\n3\n4\n5\n6\n1\n", False)]
    assert printed(run) == "1\n2\n3\n4\n5\n6\n1\n"
    assert run.lease_epoch > 3  # one for each model turn, and more than one for the command


# --- secrets ------------------------------------------------------------------------------------------------------


def everything_stored(run: Run) -> str:
    rows = [
        *Run.objects.filter(pk=run.pk).values(),
        *Message.objects.filter(attempt__run=run).values(),
        *ToolCall.objects.filter(attempt__run=run).values(),
        *events.fetch(run.pk, limit=5000),
    ]
    return str(rows)


@pytest.fixture(params=["environment", "store"])
def key(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, settings: Any, tmp_path: Path) -> str:
    """A model key where the worker finds it, and nothing else."""
    if request.param == "environment":
        monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
        return KEY
    settings.HOME = tmp_path / "home"
    folder = settings.HOME / "credentials" / "anthropic_key" / "default"
    folder.mkdir(parents=True)
    for place in (folder, *folder.parents[:2]):
        place.chmod(0o700)
    (folder / "token").write_text(KEY)
    (folder / "token").chmod(0o600)
    return KEY


def in_pieces(key: str) -> str:
    """A command that prints half of it, waits, and prints the rest."""
    return f"echo start; printf %s {key[:9]}; until [ -e go ]; do sleep 0.01; done; echo {key[9:]} end"


def test_a_key_that_comes_by_is_stored_nowhere(worker: DrivenWorker, key: str, tmp_path: Path) -> None:
    (tmp_path / "leak").write_text(key)
    turns = [
        {
            "text": f"I was told {key}",
            "tools": [
                bash(f"cat {tmp_path}/leak; base64 {tmp_path}/leak"),
                status(f"using {key}"),
                bash(f": {key}; exit 1"),
            ],
        },
        {"text": f"It was {key}"},
    ]
    run = worker.drive(submit(make_agent(turns=turns)))
    assert (run.status, run.output) == ("finished", "It was [redacted]")
    assert told(run)[0][0].startswith("[redacted][redacted]")
    assert run.status_text == "using [redacted]"
    stored = everything_stored(run)
    assert key not in stored
    assert base64.b64encode(key.encode()).decode()[2:32] not in stored


def test_a_key_that_comes_in_pieces_is_stored_nowhere(worker: DrivenWorker, points: Points, key: str) -> None:
    run = submit(make_agent(turns=[{"tools": [bash(in_pieces(key))]}, {"text": "done"}]))
    points.after("output 1", lambda: let_it_go_on(worker, run))
    run = worker.drive(run)
    assert len(data(run, "output")) > 1
    assert printed(run) == "start\n[redacted] end\n"
    assert told(run) == [("start\n[redacted] end\n", False)]


def test_an_error_with_a_key_in_it_is_stored_without(worker: DrivenWorker, key: str, model: PlayedModel) -> None:
    model.answers = [ModelUnavailable(f"bad key {key}"), ModelError(f"bad key {key}")]
    run = worker.drive(submit(make_agent(tools=["set_status"])))
    assert lifecycle.wake(run.pk, WaitReason.RATE_LIMIT)
    run = worker.drive(run)
    assert error_of(run) == ("MODEL_ERROR", "bad key [redacted]")
    assert key not in everything_stored(run)


# --- questions ----------------------------------------------------------------------------------------------------


@pytest.mark.postgresql
def test_a_run_that_asks_waits_without_slot_and_goes_on_with_the_answer(worker: DrivenWorker) -> None:
    turns = [{"tools": [ask("which one?")]}, {"expect": ["the blue one"], "text": "done"}]
    agent = make_agent(turns=turns)
    run = worker.drive(submit(agent))
    assert (run.status, run.wait_reason, run.has_slot, run.question) == ("waiting", "input", False, "which one?")
    assert data(run, "ask") == [{"callId": "1-0", "question": "which one?"}]
    queue.respond(run, "the blue one")
    with pytest.raises(queue.NotWaiting):
        queue.respond(run, "no, the red one")
    run = worker.drive(run)
    assert (run.status, run.output, run.question) == ("finished", "done", "")
    assert told(run) == [("the blue one", False)]
    assert data(run, "respond") == [{"callId": "1-0", "message": "the blue one"}]


def test_a_question_among_other_calls_stops_at_its_place(worker: DrivenWorker) -> None:
    calls = [bash("echo a >>log; cat log"), ask("go on?"), bash("echo b >>log; cat log"), ask("sure?")]
    run = worker.drive(submit(make_agent(turns=[{"tools": calls}, {"text": "done"}])))
    assert printed(run) == "a\n"
    queue.respond(run, "yes")
    run = worker.drive(run)
    assert (run.status, run.question) == ("waiting", "sure?")
    assert printed(run) == "a\na\nb\n"
    queue.respond(run, "yes, yes")
    run = worker.drive(run)
    assert run.status == "finished"
    assert told(run) == [("a\n", False), ("yes", False), ("a\nb\n", False), ("yes, yes", False)]


@pytest.mark.postgresql
def test_another_run_works_while_one_waits_for_its_answer(worker: DrivenWorker) -> None:
    agent = make_agent(turns=[{"tools": [ask("which?")]}, {"text": "done"}])
    first, second = submit(agent), submit(agent)
    worker.drive(first)
    assert [reload(first).status, reload(second).status] == ["waiting", "waiting"]


# --- cancel -------------------------------------------------------------------------------------------------------


@pytest.mark.postgresql
def test_a_pending_run_is_canceled_at_once(worker: DrivenWorker) -> None:
    run = submit(make_agent(turns=[{"text": "done"}]))
    queue.cancel(run)
    assert worker.drive(run).status == "canceled"
    with pytest.raises(queue.AlreadyOver):
        queue.cancel(run)


@pytest.mark.postgresql
def test_a_waiting_run_is_canceled_at_once(worker: DrivenWorker) -> None:
    run = worker.drive(submit(make_agent(turns=[{"tools": [ask("which?")]}])))
    queue.cancel(run)
    run = worker.drive(run)
    assert (run.status, run.question) == ("canceled", "")
    with pytest.raises(queue.NotWaiting):
        queue.respond(run, "too late")


@pytest.mark.postgresql
def test_a_run_between_two_steps_is_canceled_by_the_next(worker: DrivenWorker) -> None:
    run = submit(make_agent(turns=[{"tools": [bash("echo hi")]}]))
    worker.answer_one()
    queue.cancel(run)
    assert reload(run).cancel_requested_at is not None
    run = worker.drive(run)
    assert run.status == "canceled"
    assert types(run)[-2:] == ["cancel.requested", "status.change"]
    assert "tool.start" not in types(run)
    assert worker.engine.names() == []


@pytest.mark.postgresql
def test_a_cancel_reaches_a_running_command(worker: DrivenWorker, points: Points, tmp_path: Path) -> None:
    stopped = tmp_path / "stopped"
    command = f"trap 'touch {stopped}; exit' TERM; echo one; while :; do sleep 0.05; done"
    run = submit(make_agent(turns=[{"tools": [bash(command)]}]))

    def somebody_cancels() -> None:
        queue.cancel(run)
        worker.look(run.pk)

    points.after("output 1", somebody_cancels)
    run = worker.drive(run)
    assert run.status == "canceled"
    assert stopped.exists()  # it was asked to end before it was killed
    assert ToolCall.objects.get().state == CallState.LOST
    assert worker.engine.names() == []
    assert not workspace(worker, run).exists()


@pytest.mark.postgresql
def test_a_cancel_reaches_a_model_request(worker: DrivenWorker, model: PlayedModel) -> None:
    never = Future[Any]()
    model.answers = [never]
    run = submit(make_agent())

    def somebody_cancels() -> None:
        until(lambda: model.asked)
        queue.cancel(run)
        worker.look(run.pk)

    with meanwhile(somebody_cancels):
        run = worker.drive(run)
    assert run.status == "canceled"
    assert never.cancelled()
    assert run.estimated_tokens == run.input_tokens > 0
    assert worker.engine.names() == []


@pytest.mark.postgresql
def test_a_cancel_is_carried_out_once_the_engine_is_back(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    run = submit(make_agent(turns=[{"tools": [bash("echo hi")]}]))
    worker.answer_one()
    queue.cancel(run)
    worker.fake.down = True
    assert worker.drive(run).status == "processing"
    worker.fake.down = False
    driven_clock.forward(30)
    worker.sweep()
    assert worker.drive(run).status == "canceled"
    assert worker.engine.names() == []


# --- processes that die, stop or freeze ---------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here; no code of ours catches it, as none catches a SIGKILL."""


def kill() -> None:
    raise Killed


COMMAND = f"echo ran >>ran; {GATED}; wc -l <ran"
PRINTED = "one\ntwo\n1\n"
# Every write of a run with one command, and what each of them begins with.
WRITES = [
    "status.change 1",  # the claim
    "sandbox.start 1",  # with the first model request
    "sandbox.ready 1",
    "model.turn 1",
    "tool.start 1",
    "output 1",  # in mid-command
    "output 2",  # the rest, with the call's result
    "silent 1",  # the results, for the model
    "model.start 1",
    "model.turn 2",
    "status.change 2",  # the end
]


def make_worker_agent(**changes: Any) -> Agent:
    return make_agent(turns=[{"tools": [bash(COMMAND)]}, {"expect": ["two"], "text": "done"}], **changes)


def successor(dead: DrivenWorker, driven_clock: DrivenClock) -> DrivenWorker:
    """Another process on the host, after its sweeps have found what the dead one left. No bell reached it."""
    dead.die()
    second = other_worker(dead)
    second.sweep()
    driven_clock.forward(2)
    second.sweep()
    return second


def assert_whole(run: Run) -> None:
    """Finished; the command ran once; events are numbered without gaps; no output is missing or doubled."""
    assert (run.status, run.output, run.has_slot, run.lease_owner) == ("finished", "done", False, ""), types(run)
    assert told(run) == [(PRINTED, False)]
    assert printed(run) == PRINTED
    assert ToolCall.objects.get().state == CallState.DONE
    stored = events.fetch(run.pk)
    assert [event["id"] for event in stored] == list(range(1, run.last_event + 1))
    assert [event["type"] for event in stored].count("tool.start") == 1
    assert [entry["to"] for entry in data(run, "status.change")] == ["pending", "processing", "finished"]
    positions = Message.objects.values_list("position", flat=True)
    assert list(positions) == [0, 1, 2, 3]


def assert_every_request_is_accounted_for(run: Run) -> None:
    """Each was answered or is counted as lost, by its estimate."""
    lost = [entry["estimatedTokens"] for entry in data(run, "model.lost")]
    assert len(data(run, "model.start")) == len(data(run, "model.turn")) + len(lost)
    assert run.estimated_tokens == sum(lost)
    answered = sum(entry["usage"]["input"] for entry in data(run, "model.turn"))
    assert run.input_tokens == answered + run.estimated_tokens


@pytest.mark.postgresql
@pytest.mark.parametrize("moment", ["before", "after"])
@pytest.mark.parametrize("write", WRITES)
def test_a_worker_may_be_killed_at_any_write(
    worker: DrivenWorker, points: Points, driven_clock: DrivenClock, write: str, moment: str
) -> None:
    run = submit(make_worker_agent())
    points.before("output 1", lambda: let_it_go_on(worker, run))
    {"before": points.before, "after": points.after}[moment](write, kill)
    with pytest.raises(Killed):
        worker.drive(run)
    second = successor(worker, driven_clock)
    run = second.drive(run)
    assert_whole(run)
    assert_every_request_is_accounted_for(run)
    driven_clock.forward(10)
    second.sweep()
    assert_nothing_stands(second, run)


@pytest.mark.postgresql
def test_a_run_that_is_not_interrupted_has_these_writes_and_no_other(worker: DrivenWorker, points: Points) -> None:
    run = submit(make_worker_agent())
    points.before("output 1", lambda: let_it_go_on(worker, run))
    run = worker.drive(run)
    assert_whole(run)
    assert sorted(points.passed) == sorted(WRITES)
    assert run.estimated_tokens == 0


def assert_nothing_stands(worker: DrivenWorker, run: Run) -> None:
    assert worker.engine.names() == []
    assert not workspace(worker, run).exists()
    attempt = Attempt.objects.get(run=run)
    assert (attempt.sandbox_state, attempt.has_workspace) == (SandboxState.GONE, False)


@pytest.mark.postgresql
def test_a_request_whose_answer_was_never_stored_is_counted_and_said(
    worker: DrivenWorker, model: PlayedModel, points: Points, driven_clock: DrivenClock
) -> None:
    model.answers = [said("never stored"), said("done")]
    points.before("model.turn 1", kill)
    run = submit(make_agent())
    with pytest.raises(Killed):
        worker.drive(run)
    estimate = reload(run).open_request_tokens
    assert estimate
    run = successor(worker, driven_clock).drive(run)
    assert (run.output, run.turns, len(model.asked)) == ("done", 1, 2)
    assert (run.input_tokens, run.output_tokens, run.estimated_tokens) == (100 + estimate, 10, estimate)
    assert data(run, "model.lost") == [{"estimatedTokens": estimate}]
    assert run.open_request_tokens is None


@pytest.mark.parametrize("broken_off", [1, 2])
def test_requests_that_broke_off_before_an_answer_or_a_refusal_are_counted_too(
    worker: DrivenWorker, model: PlayedModel, driven_clock: DrivenClock, broken_off: int
) -> None:
    answer = said("done")
    answer["lost_requests"] = broken_off
    model.answers = [ModelUnavailable("broke off", lost_requests=broken_off), answer]
    run = worker.drive(submit(make_agent()))
    estimate = transcript.estimated_tokens(model.asked[0].messages)
    assert (run.status, run.estimated_tokens) == ("waiting", broken_off * estimate)
    driven_clock.forward(6)
    worker.sweep()
    run = worker.drive(run)
    assert (run.status, run.input_tokens, run.estimated_tokens) == (
        "finished",
        100 + 2 * broken_off * estimate,
        2 * broken_off * estimate,
    )
    assert data(run, "model.lost") == [{"estimatedTokens": broken_off * estimate}] * 2


def remove_sandbox(worker: DrivenWorker, run: Run) -> None:
    worker.fake.remove(Attempt.objects.get(run=run).sandbox_name)


def start_it_anew(worker: DrivenWorker, run: Run) -> None:
    name = Attempt.objects.get(run=run).sandbox_name
    spec = worker.fake.specs[name]
    worker.fake.remove(name)
    worker.fake.start(spec)


def wipe_records(worker: DrivenWorker, run: Run) -> None:
    records = worker.fake._home(Attempt.objects.get(run=run).sandbox_name) / "run"
    for record in records.iterdir():
        shutil.rmtree(record) if record.is_dir() else record.unlink()


@pytest.mark.parametrize("write", ["tool.start 1", "output 1"])
@pytest.mark.parametrize("lose", [remove_sandbox, start_it_anew, wipe_records])
def test_a_command_that_was_under_way_when_both_were_lost_is_not_started_again(
    worker: DrivenWorker,
    points: Points,
    driven_clock: DrivenClock,
    write: str,
    lose: Callable[[DrivenWorker, Run], None],
) -> None:
    """Worker and sandbox: nobody can tell how far it came, also where it may not have begun."""
    turns = [
        {"tools": [bash(GATED)]},
        {"expect": ["It may have had effects"], "tools": [bash("echo on")]},
        {"text": "done"},
    ]
    run = submit(make_agent(turns=turns))
    points.after(write, kill)
    with pytest.raises(Killed):
        worker.drive(run)
    asked = len(worker.fake.commands)
    lose(worker, run)
    run = successor(worker, driven_clock).drive(run)
    assert (run.status, run.output) == ("finished", "done")
    assert told(run) == [(LOST, True), ("on\n", False)]
    # Asked about at most, in a sandbox whose records say that it must not begin.
    assert [command.call_id for command in worker.fake.commands[asked:]].count("1-0.0") == (lose is wipe_records)
    assert data(run, "tool.end")[0]["lost"]
    assert printed(run) == ("one\non\n" if write == "output 1" else "on\n")


@pytest.mark.postgresql
def test_a_run_that_kills_every_worker_fails(worker: DrivenWorker, points: Points, driven_clock: DrivenClock) -> None:
    run = submit(make_worker_agent())
    for number in range(1, 5):
        points.before(f"tool.start {number}", kill)
    for _ in range(4):
        with pytest.raises(Killed):
            worker.drive(run)
            worker.sweep()
        worker.die()
        worker = other_worker(worker)
        worker.dead_owners()
        driven_clock.forward(10)
    worker.sweep()
    run = worker.drive(run)
    assert error_of(run)[0] == "WORKER_LOST"
    assert len(data(run, "run.takeover")) == 4
    assert worker.fake.commands == []
    assert_nothing_stands(worker, run)


@pytest.mark.postgresql
def test_a_key_in_two_halves_is_not_stored_by_two_workers_either(
    worker: DrivenWorker, key: str, points: Points, driven_clock: DrivenClock
) -> None:
    run = submit(make_agent(turns=[{"tools": [bash(in_pieces(key))]}, {"text": "done"}]))
    points.before("output 1", lambda: let_it_go_on(worker, run))
    points.after("output 1", kill)
    with pytest.raises(Killed):
        worker.drive(run)
    run = successor(worker, driven_clock).drive(run)
    assert told(run) == [("start\n[redacted] end\n", False)]
    assert printed(run) == "start\n[redacted] end\n"


@pytest.mark.postgresql
def test_a_worker_that_stops_lets_go_and_the_next_follows_the_same_command(
    worker: DrivenWorker, points: Points
) -> None:
    run = submit(make_worker_agent())

    def stop() -> None:
        worker.stopping.set()
        worker.lease_thread.halt_all(Why.STOPPING)

    points.after("output 1", stop)
    worker.drive(run)
    assert reload(run).lease_owner == ""
    let_it_go_on(worker, run)
    second = other_worker(worker)
    second.look(run.pk)
    run = second.drive(run)
    assert_whole(run)
    assert run.takeovers == 0
    assert data(run, "run.takeover") == []


# --- a worker that was frozen, and wakes ----------------------------------------------------------------------------


class Frozen:
    """A worker on a thread of its own that stops before one of its writes, until `thawed` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, worker: DrivenWorker, write: str) -> None:
        self.reached, self.thawed = threading.Event(), threading.Event()
        self._owner, self._write, self._counts = worker.owner, write, Counter[str]()
        self._plain = Step.write
        monkeypatch.setattr(Step, "write", lambda step, *new, **sets: self._frozen_write(step, new, sets))

    def _frozen_write(self, step: Step, new: Sequence[events.New], sets: dict[str, Any]) -> Any:
        """The freeze comes before the transaction begins: one of SQLite's would keep everybody else out."""
        if step.lease.owner == self._owner:
            name = new[0].type if new else "silent"
            self._counts[name] += 1
            if f"{name} {self._counts[name]}" == self._write:
                self.reached.set()
                assert self.thawed.wait(PATIENCE)
        return self._plain(step, *new, **sets)


def take_over(frozen: DrivenWorker, driven_clock: DrivenClock) -> DrivenWorker:
    """Another process on the host, once the frozen one's lease has run out."""
    second = other_worker(frozen)
    driven_clock.forward(leases.TERM.total_seconds() + 2)
    second.sweep()
    return second


def everything(run: Run) -> list[Any]:
    tables: list[Any] = [Attempt, Message, ToolCall, Event]
    return [Run.objects.filter(pk=run.pk).values().get(), *(list(table.objects.values()) for table in tables)]


@pytest.mark.postgresql
@pytest.mark.parametrize(
    "write", ["sandbox.start 1", "sandbox.ready 1", "tool.start 1", "output 1", "output 2", "silent 1"]
)
def test_a_worker_that_wakes_after_a_takeover_stores_nothing(
    worker: DrivenWorker, points: Points, monkeypatch: pytest.MonkeyPatch, driven_clock: DrivenClock, write: str
) -> None:
    run = submit(make_worker_agent())
    points.before("output 1", lambda: let_it_go_on(worker, run))
    frozen = Frozen(monkeypatch, worker, write)
    with meanwhile(lambda: worker.drive(run)):
        try:
            assert frozen.reached.wait(PATIENCE)
            run = take_over(worker, driven_clock).drive(run)
            before = everything(run)
        finally:
            frozen.thawed.set()
    assert everything(run) == before
    assert_whole(run)
    assert_every_request_is_accounted_for(run)
    assert_nothing_stands(worker, run)


@pytest.mark.postgresql
def test_an_answer_that_comes_after_a_takeover_is_not_stored(
    worker: DrivenWorker, model: PlayedModel, driven_clock: DrivenClock
) -> None:
    late = Future[Any]()
    model.answers = [late, said("of the second")]
    run = submit(make_agent())
    with meanwhile(lambda: worker.drive(run)):
        try:
            # Until then the first worker has something to write, and would find out by itself.
            until(lambda: model.asked and data(run, "sandbox.ready"))
            run = take_over(worker, driven_clock).drive(run)
            before = everything(run)
        finally:
            late.set_result(said("of the first"))
    assert everything(run) == before
    assert (run.status, run.output, run.turns) == ("finished", "of the second", 1)
    assert_nothing_stands(worker, run)


@pytest.mark.postgresql
def test_a_lease_that_could_not_be_renewed_ends_the_step_of_who_held_it(
    worker: DrivenWorker, model: PlayedModel, driven_clock: DrivenClock
) -> None:
    never = Future[Any]()
    model.answers = [never, said("of the second")]
    run = submit(make_agent())
    with meanwhile(lambda: worker.drive(run)):
        until(lambda: model.asked)
        run = take_over(worker, driven_clock).drive(run)
        worker.lease_thread.renew()
    assert never.cancelled()
    assert reload(run).output == "of the second"
