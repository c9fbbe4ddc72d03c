"""Messages to runs that have begun: when each mode is heard, what interrupts, and what goes on after the end."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from typing import Any

import pytest
from django.db import connection

from agents import clock
from agents.models import AgentVersion, Workspace
from runs import events, hands, inputs, leases, lifecycle, line, prompt, queue, transcript
from runs.calls.interruption import INTERRUPTED, NOT_RUN
from runs.calls.outcome import LOST, NEVER_RUN
from runs.models import (
    Approval,
    Attempt,
    Event,
    Host,
    InputMode,
    InputState,
    Message,
    Run,
    RunInput,
    SandboxState,
    ToolCall,
    TriggerKind,
)
from runs.transcript import Body
from tests.conftest import DrivenClock, DrivenWorker, PlayedModel, Points, meanwhile, other_worker, until
from tests.making import ask, bash, make_agent, said, status, submit
from tests.test_admin import of_run, page, press, staff
from tests.test_admin import said as shown
from tests.test_api import Api, code
from tests.test_engine import Killed, data, error_of, kill, printed, reload, successor, told, types

pytestmark = pytest.mark.django_db(transaction=True)

SLEEPS = "echo one; echo $$ >pid; sleep 600; echo two"


@pytest.fixture
def api(db: None) -> Api:
    return Api()


def send(run: Run, message: str = "stop", mode: InputMode = InputMode.FOLLOWUP) -> RunInput:
    sent, _ = inputs.send(run, message, mode, trigger=TriggerKind.API)
    return sent


def heard_by(request: Any) -> list[str]:
    """What a request's last message says."""
    return [part.get("text", "") for part in request.messages[-1]["parts"]]


def roles(run: Run) -> list[str]:
    return [body["role"] for body in Message.objects.filter(attempt__run=run).values_list("body", flat=True)]


def interrupt_now(worker: DrivenWorker, run: Run, message: str = "stop") -> RunInput:
    """As the doorbell brings it to the process that is at work on the run."""
    sent = send(run, message, InputMode.INTERRUPT)
    worker.look(run.pk)
    return sent


# --- what is taken ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "mode"),
    [
        ({}, "followup"),
        ({"mode": ""}, "followup"),
        ({"mode": "queue"}, "queue"),
        ({"mode": "followup"}, "followup"),
        ({"mode": "steer"}, "steer"),
        ({"mode": "steer-backlog"}, "steer"),
        ({"mode": "interrupt"}, "interrupt"),
        ({"queue_mode": "steer-backlog"}, "steer"),
        ({"queue_mode": "interrupt", "mode": "interrupt"}, "interrupt"),
    ],
)
def test_every_mode_is_taken_under_each_of_its_names(api: Api, asked: dict[str, str], mode: str) -> None:
    run = submit(make_agent())
    answer = api("POST", f"tasks/{run.pk}/input", {"message": "more", **asked})
    sent = RunInput.objects.get()
    told_back = {"taskId": run.pk, "status": "pending", "inputId": sent.pk, "outcome": "queued", "mode": mode}
    assert answer == (202, told_back)
    assert (sent.run_id, sent.message, sent.mode, sent.state) == (run.pk, "more", mode, "pending")
    assert data(run, "input") == [{"inputId": sent.pk, "mode": mode, "outcome": "queued", "message": "more"}]


@pytest.mark.parametrize(
    "body",
    [
        {"message": "x", "mode": "collect"},
        {"message": "x", "mode": "now"},
        {"message": "x", "mode": 7},
        {"message": "x", "mode": None},
        {"message": "x", "queue_mode": "later"},
        {"message": "x", "queue_mode": "steer", "mode": "queue"},
        {"message": "x", "wait": True},
        {"message": ""},
        {"message": 7},
        {},
        [],
        "{",
    ],
)
def test_what_is_no_input_is_refused_and_changes_nothing(api: Api, body: Any) -> None:
    run = submit(make_agent())
    before = Run.objects.values().get(), Event.objects.count()
    assert code(api("POST", f"tasks/{run.pk}/input", body)) == (400, "VALIDATION_ERROR")
    assert not RunInput.objects.exists()
    assert (Run.objects.values().get(), Event.objects.count()) == before


def test_another_workspaces_run_hears_nothing(api: Api) -> None:
    run = submit(make_agent())
    stranger = Api(Workspace.objects.create(name="other"))
    assert code(stranger("POST", f"tasks/{run.pk}/input", {"message": "x"})) == (404, "TASK_NOT_FOUND")
    assert code(stranger("GET", f"tasks/{run.pk}/inputs")) == (404, "TASK_NOT_FOUND")
    assert not RunInput.objects.exists()


def test_a_program_that_is_its_own_agent_hears_nothing(api: Api) -> None:
    run = submit(make_agent(kind="command", command=["true"]))
    assert code(api("POST", f"tasks/{run.pk}/input", {"message": "x"})) == (400, "MODE_NOT_SUPPORTED")
    assert not RunInput.objects.exists()


def test_inputs_are_listed_and_those_nobody_has_heard_can_be_asked_for(api: Api, worker: DrivenWorker) -> None:
    run = submit(make_agent(turns=[{"text": "first"}, {"text": "second"}]))
    send(run, "a", InputMode.STEER)
    send(run, "b", InputMode.QUEUE)
    worker.answer_one()
    _, listed = api("GET", f"tasks/{run.pk}/inputs")
    assert [(one["message"], one["mode"], one["state"], one["outcome"]) for one in listed["inputs"]] == [
        ("a", "steer", "delivered", "queued"),
        ("b", "queue", "delivered", "queued"),
    ]
    send(run, "c", InputMode.QUEUE)
    _, waiting = api("GET", f"tasks/{run.pk}/inputs?pending=true")
    assert [set(one) for one in waiting["inputs"]] == [
        {"id", "mode", "message", "state", "outcome", "created_at", "delivered_at", "restarted"}
    ]
    assert [(one["message"], one["delivered_at"], one["restarted"]) for one in waiting["inputs"]] == [("c", None, None)]
    assert api("GET", f"tasks/{run.pk}")[1]["task"]["pending_inputs"] == 1


def test_a_task_says_whether_it_listens(api: Api, worker: DrivenWorker) -> None:
    run = submit(make_agent(turns=[{"tools": [ask("Which one?")]}, {"text": "done"}]))

    def interaction() -> str:
        return str(api("GET", f"tasks/{run.pk}")[1]["task"]["interaction"])

    assert interaction() == "working"
    worker.drive(run)
    assert interaction() == "waiting_for_input"
    assert api("POST", f"tasks/{run.pk}/input", {"message": "the second"})[1]["outcome"] == "direct"
    assert interaction() == "working"
    worker.drive(run)
    assert interaction() == "closed"


# --- when each mode is heard --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", InputMode)
def test_an_input_to_a_run_that_asks_is_the_answer(worker: DrivenWorker, mode: InputMode) -> None:
    turns = [{"tools": [ask("Which one?")]}, {"expect": ["the second"], "text": "thanks"}]
    run = worker.drive(submit(make_agent(turns=turns)))
    sent = send(run, "the second", mode)
    assert (sent.outcome, sent.state) == ("direct", "delivered")
    run = worker.drive(run)
    assert (run.status, run.output) == ("finished", "thanks")
    assert told(run) == [("the second", False)]
    assert roles(run) == ["user", "assistant", "tool", "assistant"]


def test_a_steer_is_heard_right_after_the_results_of_the_tools(
    worker: DrivenWorker, model: PlayedModel, points: Points
) -> None:
    model.answers = [said("", status("a"), status("b")), said("done")]
    run = submit(make_agent())
    points.after("tool.start 1", lambda: send(run, "look left", InputMode.STEER))
    run = worker.drive(run)
    assert (run.status, run.output, run.turns) == ("finished", "done", 2)
    assert told(run) == [("ok", False), ("ok", False)]
    assert roles(run) == ["user", "assistant", "tool", "user", "assistant"]
    assert heard_by(model.asked[1]) == ["look left"]
    assert RunInput.objects.get().delivered_at is not None
    assert data(run, "input.delivered") == [{"inputId": RunInput.objects.get().pk, "mode": "steer"}]


def test_what_is_said_before_the_run_begins_is_heard_with_its_prompt(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("done")]
    run = submit(make_agent())
    send(run, "look left", InputMode.STEER)
    assert send(run, "and right", InputMode.INTERRUPT).outcome == "queued"
    run = worker.drive(run)
    assert (run.status, run.turns, run.estimated_tokens) == ("finished", 1, 0)
    assert heard_by(model.asked[0]) == ["look left", "and right"]
    assert roles(run) == ["user", "user", "assistant"]


def test_followups_are_heard_together_and_the_queue_one_by_one(
    worker: DrivenWorker, model: PlayedModel, points: Points
) -> None:
    model.answers = [said("", status("a")), *(said(f"answer {number}") for number in range(4))]
    run = submit(make_agent())

    def say_much() -> None:
        for message, mode in (("q1", "queue"), ("f1", "followup"), ("q2", "queue"), ("f2", "followup")):
            send(run, message, InputMode(mode))

    points.after("tool.start 1", say_much)
    run = worker.drive(run)
    assert (run.status, run.output) == ("finished", "answer 3")
    assert [heard_by(request) for request in model.asked[1:]] == [["ok"], ["f1", "f2"], ["q1"], ["q2"]]
    assert set(RunInput.objects.values_list("state", flat=True)) == {"delivered"}
    assert [entry["to"] for entry in data(run, "status.change")] == ["pending", "processing", "finished"]


@pytest.mark.postgresql
@pytest.mark.parametrize("mode", InputMode)
def test_an_input_that_comes_while_the_last_answer_is_on_its_way_is_heard(
    worker: DrivenWorker, model: PlayedModel, points: Points, mode: InputMode
) -> None:
    model.answers = [said("that was all"), said("now that was all")]
    run = submit(make_agent())
    points.after("sandbox.start 1", lambda: send(run, "one more thing", mode))
    run = worker.drive(run)
    assert (run.status, run.output, run.turns) == ("finished", "now that was all", 2)
    assert heard_by(model.asked[1]) == ["one more thing"]
    assert roles(run) == ["user", "assistant", "user", "assistant"]


@pytest.mark.postgresql
def test_an_input_and_the_end_of_the_run_cannot_miss_each_other(worker: DrivenWorker, model: PlayedModel) -> None:
    """Whichever is first: it is heard by this run, or the next one goes on with it."""
    agent = make_agent()
    for number in range(8):
        model.answers = [said("", status("a")), said("done"), said("done"), said("done")]
        run = submit(agent)
        asked = len(model.asked)

        def say(run: Run = run, asked: int = asked + number % 2) -> None:
            until(lambda: len(model.asked) > asked)
            send(run, "one more thing")

        with meanwhile(say):
            worker.drive(run)
        worker.drive(run)
        sent = RunInput.objects.get(run=run)
        assert sent.state == "delivered"
        assert sent.outcome in {"queued", "restarted"}
        assert (sent.restarted is None) == (sent.outcome == "queued")
        assert "one more thing" in heard_by(model.asked[-1])[0]


@pytest.mark.postgresql
def test_the_next_attempt_of_a_run_is_told_again(
    worker: DrivenWorker, model: PlayedModel, points: Points, driven_clock: DrivenClock
) -> None:
    model.answers = [said("", status("a")), said("", status("b")), said("done")]
    run = submit(make_agent(retry="always", attempts={"after": ["timeout"]}, limits={"wall_seconds": 60}))
    send(run, "mind the gap", InputMode.STEER)
    points.after("tool.start 2", lambda: driven_clock.forward(61))
    run = worker.drive(run)
    assert run.status == "waiting"
    driven_clock.forward(60)
    worker.sweep()
    run = worker.drive(run)
    assert (run.status, Attempt.objects.filter(run=run).count()) == ("finished", 2), types(run)
    assert heard_by(model.asked[-1]) == ["mind the gap"]
    assert len(data(run, "input.delivered")) == 1


# --- interrupt ----------------------------------------------------------------------------------------------------


def test_an_interrupt_closes_the_model_request_and_is_heard_by_the_next(
    worker: DrivenWorker, model: PlayedModel
) -> None:
    never = Future[Body]()
    model.answers = [never, said("stopped")]
    run = submit(make_agent())

    def come_in_between() -> None:
        until(lambda: model.asked)
        assert interrupt_now(worker, run).outcome == "interrupted"

    with meanwhile(come_in_between):
        run = worker.drive(run)
    assert never.cancelled()
    assert (run.status, run.output, run.turns) == ("finished", "stopped", 1)
    assert heard_by(model.asked[1]) == ["stop"]
    assert run.estimated_tokens == sum(entry["estimatedTokens"] for entry in data(run, "model.lost")) > 0
    assert roles(run) == ["user", "user", "assistant"]


def test_an_interrupt_ends_the_command_and_nothing_else_of_its_turn_starts(
    worker: DrivenWorker, model: PlayedModel, points: Points
) -> None:
    model.answers = [said("", bash(SLEEPS), bash("touch started"), status("b")), said("", bash("cat pid")), said("bye")]
    run = submit(make_agent())
    points.after("output 1", lambda: interrupt_now(worker, run))
    run = worker.drive(run)
    assert (run.status, run.output) == ("finished", "bye")
    assert told(run)[:3] == [
        (f"{INTERRUPTED}one\n", True),
        (NOT_RUN, True),
        (NOT_RUN, True),
    ]
    assert heard_by(model.asked[1]) == ["stop"]
    assert printed(run).startswith("one\n")
    first, second, third, last = ToolCall.objects.order_by("position", "index")
    assert (first.exit_code, second.started_at, third.started_at, last.exit_code) == (143, None, None, 0)
    assert [command.argv[-1] for command in worker.fake.commands].count("touch started") == 0
    assert run.status_text == ""
    assert Attempt.objects.get(run=run).sandbox_losses == 0


def test_an_interrupted_command_is_gone_before_the_model_is_asked(
    worker: DrivenWorker, model: PlayedModel, points: Points
) -> None:
    model.answers = [said("", bash(SLEEPS)), said("", bash("kill -0 $(cat pid) || echo gone")), said("bye")]
    run = submit(make_agent())
    points.after("output 1", lambda: interrupt_now(worker, run))
    run = worker.drive(run)
    assert "gone\n" in told(run)[1][0]


def test_a_command_that_does_not_end_when_told_to_takes_its_sandbox_with_it(
    worker: DrivenWorker, model: PlayedModel, points: Points, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hands, "STOP_GRACE", 1)
    monkeypatch.setattr(hands, "STOPPED_WITHIN", 0.5)
    stubborn = "trap '' TERM; echo kept >file; echo one; while :; do sleep 0.1; done"
    model.answers = [said("", bash(stubborn)), said("", bash("cat file")), said("bye")]
    run = submit(make_agent())
    points.after("output 1", lambda: interrupt_now(worker, run))
    run = worker.drive(run)
    assert (run.status, run.output) == ("finished", "bye")
    assert told(run) == [(f"{INTERRUPTED}one\n", True), ("kept\n", False)]
    assert heard_by(model.asked[1]) == ["stop"]
    attempt = Attempt.objects.get(run=run)
    assert (types(run).count("sandbox.ready"), attempt.sandbox_losses) == (2, 0)
    assert attempt.sandbox_state == SandboxState.GONE
    assert worker.engine.names() == []


@pytest.mark.postgresql
@pytest.mark.parametrize("write", ["tool.start 1", "output 1"])
def test_an_interrupt_outlives_the_worker_that_should_have_heard_it(
    worker: DrivenWorker, model: PlayedModel, points: Points, driven_clock: DrivenClock, write: str
) -> None:
    """Killed before the sandbox was asked, or in mid-command: nothing is started, and nothing a second time."""
    model.answers = [said("", bash(f"echo ran >>ran; {SLEEPS}")), said("", bash("cat ran || echo never")), said("bye")]
    run = submit(make_agent())

    def say_and_die() -> None:
        send(run, "stop", InputMode.INTERRUPT)
        kill()

    points.after(write, say_and_die)
    with pytest.raises(Killed):
        worker.drive(run)
    run = successor(worker, driven_clock).drive(run)
    assert (run.status, run.output) == ("finished", "bye")
    began = write == "output 1"
    assert told(run)[0] == (f"{INTERRUPTED}one\n" if began else INTERRUPTED, True)
    assert told(run)[1][0].endswith("ran\n" if began else "never\n")
    assert heard_by(model.asked[1]) == ["stop"]


@pytest.mark.postgresql
@pytest.mark.parametrize("write", ["tool.end 1", "silent 2", "input.delivered 1"])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_worker_may_be_killed_while_it_carries_an_interrupt_out(
    worker: DrivenWorker, model: PlayedModel, points: Points, driven_clock: DrivenClock, write: str, moment: str
) -> None:
    model.answers = [said("", bash(f"echo ran >>ran; {SLEEPS}")), *[said("", bash("cat ran")), said("bye")] * 2]
    run = submit(make_agent())
    points.after("output 1", lambda: interrupt_now(worker, run))
    {"before": points.before, "after": points.after}[moment](write, kill)
    with pytest.raises(Killed):
        worker.drive(run)
    run = successor(worker, driven_clock).drive(run)
    assert run.status == "finished", types(run)
    assert "ran\n" in [text for text, _ in told(run)]
    assert [text for text, _ in told(run)].count(f"{INTERRUPTED}one\n") == 1
    assert len(data(run, "input.delivered")) == 1
    parts = [part for message in Message.objects.filter(attempt__run=run) for part in message.body["parts"]]
    assert [part.get("text") for part in parts].count("stop") == 1


@pytest.mark.postgresql
def test_an_interrupt_whose_bell_was_lost_is_found_when_leases_are_renewed(
    worker: DrivenWorker, model: PlayedModel
) -> None:
    never = Future[Body]()
    model.answers = [never, said("stopped")]
    run = submit(make_agent())

    def bells_are_lost() -> None:
        until(lambda: model.asked)
        send(run, "stop", InputMode.INTERRUPT)
        worker.lease_thread.renew()

    with meanwhile(bells_are_lost):
        run = worker.drive(run)
    assert (run.status, run.output) == ("finished", "stopped")


def test_an_interrupt_that_the_step_knows_of_does_not_stop_it_again(
    worker: DrivenWorker, model: PlayedModel, points: Points
) -> None:
    """Whoever renews leases may have read it just before it was delivered."""
    model.answers = [said("done")]
    run = submit(make_agent())
    send(run, "stop", InputMode.INTERRUPT)
    points.before("sandbox.start 1", worker.lease_thread.renew)
    points.before("sandbox.start 1", partial(worker.look, run.pk))
    run = worker.drive(run)
    assert (run.status, run.output, len(model.asked)) == ("finished", "done", 1)
    assert "model.lost" not in types(run)


def test_an_interrupt_refuses_what_waits_for_approval(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("", bash("touch started"), status("b")), said("fine")]
    run = worker.drive(submit(make_agent(approvals={"ask": "always"})))
    assert run.wait_reason == "approval"
    assert send(run, "not that", InputMode.INTERRUPT).outcome == "interrupted"
    run = worker.drive(run)
    assert (run.status, run.output) == ("finished", "fine")
    assert Approval.objects.get().state == "refused"
    assert told(run) == [(NOT_RUN, True), (NOT_RUN, True)]
    assert heard_by(model.asked[1]) == ["not that"]
    assert worker.fake.commands == []


def test_other_modes_leave_an_approval_open(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("", bash("true"))]
    run = worker.drive(submit(make_agent(approvals={"ask": "always"})))
    assert send(run, "by the way", InputMode.STEER).outcome == "queued"
    assert worker.drive(run).wait_reason == "approval"
    assert Approval.objects.get().state == "pending"


@pytest.mark.postgresql
def test_a_cancel_after_an_interrupt_wins(worker: DrivenWorker, model: PlayedModel, points: Points) -> None:
    model.answers = [said("", bash(SLEEPS))]
    run = submit(make_agent())

    def both() -> None:
        interrupt_now(worker, run)
        queue.cancel(run)

    points.after("output 1", both)
    run = worker.drive(run)
    assert run.status == "canceled"
    assert RunInput.objects.get().state == "dropped"
    assert worker.engine.names() == []


# --- after the end ------------------------------------------------------------------------------------------------


@pytest.mark.postgresql
def test_an_input_to_a_run_that_is_over_starts_one_that_goes_on_from_it(
    api: Api, worker: DrivenWorker, model: PlayedModel
) -> None:
    model.answers = [said("", bash("echo hi; touch file")), said("first"), said("", bash("ls")), said("second")]
    old = worker.drive(submit(make_agent(), input="Count."))
    status_code, answer = api("POST", f"tasks/{old.pk}/input", {"message": "Go on.", "mode": "steer"})
    assert (status_code, answer["outcome"], answer["status"]) == (202, "restarted", "pending")
    run = worker.drive(Run.objects.get(pk=answer["taskId"]))
    old = reload(old)
    assert (run.status, run.output, old.output) == ("finished", "second", "first")
    assert (run.session_key, old.session_key, run.resumed_from_id) == (old.pk, old.pk, old.pk)
    assert (run.trigger, run.caused_by, run.agent_id) == ("api", old.pk, old.agent_id)
    before = transcript.load(Attempt.objects.get(run=old))
    shown = model.asked[2].messages
    assert list(shown[:-1]) == before
    assert heard_by(model.asked[2]) == [f"{prompt.RESUMED}\n\n<user-prompt>\nGo on.\n</user-prompt>"]
    agents_own = "SKILL.md\nagent-config.json\n"
    assert told(run) == [("hi\n", False), (agents_own, False)]  # another sandbox, and a workspace with no more
    sent = RunInput.objects.get()
    assert (sent.run, sent.restarted, sent.state) == (old, run, "delivered")
    assert data(old, "input")[0]["restarted"] == run.pk
    assert [entry["to"] for entry in data(old, "status.change")] == ["pending", "processing", "finished"]


def test_it_goes_on_again_and_again(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("one"), said("two"), said("three")]
    run = first = worker.drive(submit(make_agent(), input="Count."))
    for number in range(2):
        sent = send(run, f"more {number}")
        assert sent.restarted is not None
        run = worker.drive(sent.restarted)
    assert (run.output, run.session_key) == ("three", first.pk)
    assert [body["role"] for body in model.asked[2].messages] == ["user", "assistant", "user", "assistant", "user"]


def test_calls_that_never_ended_have_a_result_when_another_run_goes_on(
    worker: DrivenWorker, model: PlayedModel, points: Points
) -> None:
    model.answers = [said("", bash(SLEEPS), bash("echo never")), said("done")]
    old = submit(make_agent())

    def cancel() -> None:
        queue.cancel(old)
        worker.look(old.pk)

    points.after("output 1", cancel)
    old = worker.drive(old)
    assert old.status == "canceled"
    run = send(old, "Go on.").restarted
    assert run is not None
    assert worker.drive(run).status == "finished"
    results = model.asked[1].messages[2]
    assert [part["text"] for part in results["parts"]] == [LOST, NEVER_RUN]
    assert [part["id"] for part in results["parts"]] == ["call_0", "call_1"]
    assert [body["role"] for body in model.asked[1].messages] == ["user", "assistant", "tool", "user"]


def test_a_run_that_goes_on_from_a_deleted_one_begins_as_any_other(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("one"), said("two")]
    old = worker.drive(submit(make_agent(), input="Count."))
    run = send(old, "Go on.").restarted
    assert run is not None
    queue.delete(old, force=False)
    assert not Run.objects.filter(pk=old.pk).exists()
    run = worker.drive(reload(run))
    assert (run.status, run.resumed_from_id) == ("finished", None)
    [shown] = model.asked[1].messages
    assert "<user-prompt>\nGo on.\n</user-prompt>" in shown["parts"][1]["text"]
    assert prompt.RESUMED not in shown["parts"][1]["text"]


def test_a_run_canceled_before_it_began_is_begun_anew(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("done")]
    old = submit(make_agent(), input="Count.")
    queue.cancel(old)
    run = send(old, "Go on.").restarted
    assert run is not None
    assert worker.drive(run).status == "finished"
    assert len(model.asked[0].messages) == 1


@pytest.mark.postgresql
def test_while_another_run_of_the_session_is_alive_it_hears_what_is_said_to_the_old_one(
    api: Api, worker: DrivenWorker, model: PlayedModel
) -> None:
    model.answers = [said("one"), said("two"), said("three")]
    old = worker.drive(submit(make_agent()))
    first = api("POST", f"tasks/{old.pk}/input", {"message": "Go on."})[1]
    second = api("POST", f"tasks/{old.pk}/input", {"message": "And on."})[1]
    assert (first["outcome"], second["outcome"]) == ("restarted", "queued")
    assert first["taskId"] == second["taskId"]
    assert Run.objects.count() == 2
    run = worker.drive(Run.objects.get(pk=second["taskId"]))
    assert (run.status, run.output) == ("finished", "three")
    assert heard_by(model.asked[2]) == ["And on."]


@pytest.mark.parametrize("session", ["", "s"])
def test_an_agent_that_takes_no_work_does_not_go_on_either(api: Api, worker: DrivenWorker, session: str) -> None:
    agent = make_agent(turns=[{"text": "done"}])
    old = worker.drive(submit(agent, session_key=session))
    queue.pause(agent)
    before = Run.objects.values().get()
    assert code(api("POST", f"tasks/{old.pk}/input", {"message": "x"})) == (409, "AGENT_UNAVAILABLE")
    assert Run.objects.values().get() == before
    assert not RunInput.objects.exists()


# --- inputs nobody will hear --------------------------------------------------------------------------------------


def canceled(worker: DrivenWorker, run: Run) -> None:
    queue.cancel(run)


def failed(worker: DrivenWorker, run: Run) -> None:
    worker.drive(run)


@pytest.mark.postgresql
@pytest.mark.parametrize(("end", "ends"), [(canceled, "canceled"), (failed, "failed")])
def test_a_run_that_ends_without_success_drops_what_it_has_not_heard(
    api: Api, worker: DrivenWorker, end: Callable[[DrivenWorker, Run], None], ends: str
) -> None:
    run = submit(make_agent(turns=[]))
    sent = send(run, "too late")
    end(worker, run)
    assert reload(run).status == ends
    listed = partial(api, "GET", f"tasks/{run.pk}/inputs")
    assert listed()[1]["inputs"][0]["state"] == "dropped"
    assert api("GET", f"tasks/{run.pk}/inputs?pending=true")[1]["inputs"] == []
    worker.drive(run)
    assert RunInput.objects.get().state == "dropped"
    assert data(run, "input.dropped") == [{"inputId": sent.pk, "mode": "followup"}]
    assert api("GET", f"tasks/{run.pk}")[1]["task"]["pending_inputs"] == 0


# --- once, however often it comes ---------------------------------------------------------------------------------


@pytest.mark.postgresql
def test_a_repeated_key_says_the_same_again_and_nothing_to_the_run(api: Api) -> None:
    run = submit(make_agent())
    key = {"Idempotency-Key": "k"}
    first = api("POST", f"tasks/{run.pk}/input", {"message": "x"}, **key)
    again = api("POST", f"tasks/{run.pk}/input", {"message": "x", "mode": "followup"}, **key)
    assert (first[0], again[0]) == (202, 200)
    assert first[1] == again[1]
    other = api("POST", f"tasks/{run.pk}/input", {"message": "x", "mode": "steer"}, **key)
    assert code(other) == (409, "IDEMPOTENCY_KEY_REUSED")
    assert RunInput.objects.count() == 1


@pytest.mark.postgresql
def test_a_repeated_key_is_known_also_where_another_run_of_the_session_heard_it(api: Api, worker: DrivenWorker) -> None:
    old = worker.drive(submit(make_agent(turns=[{"text": "a"}, {"text": "b"}, {"text": "c"}])))
    send(old, "Go on.")
    key = {"Idempotency-Key": "k"}
    first = api("POST", f"tasks/{old.pk}/input", {"message": "And on."}, **key)
    worker.drive(old)
    again = api("POST", f"tasks/{old.pk}/input", {"message": "And on."}, **key)
    assert (first[0], again[0]) == (202, 200)
    assert {**first[1], "status": "finished"} == again[1]
    assert Run.objects.count() == 2


def together(ask_once: Callable[[], tuple[int, Any]], *, times: int = 50) -> list[tuple[int, Any]]:
    def ask_and_leave() -> tuple[int, Any]:
        try:
            return ask_once()
        finally:
            connection.close()

    with ThreadPoolExecutor(times) as callers:
        return [answer.result() for answer in [callers.submit(ask_and_leave) for _ in range(times)]]


@pytest.mark.postgresql
@pytest.mark.parametrize("over", [False, True])
def test_fifty_parallel_inputs_with_one_key_are_one(api: Api, worker: DrivenWorker, over: bool) -> None:
    run = submit(make_agent(turns=[{"text": "done"}]))
    if over:
        worker.drive(run)
    body, key = {"message": "x"}, {"Idempotency-Key": "k"}
    answers = together(lambda: api("POST", f"tasks/{run.pk}/input", body, **key))
    assert sorted(status for status, _ in answers) == [200] * 49 + [202]
    assert len({body["inputId"] for _, body in answers}) == len({body["taskId"] for _, body in answers}) == 1
    assert RunInput.objects.count() == 1
    assert Run.objects.count() == 1 + over


@pytest.mark.postgresql
def test_fifty_parallel_requests_with_one_key_start_one_task(api: Api) -> None:
    make_agent()
    answers = together(lambda: api("POST", "agents/dev/task", {"input": "x"}, **{"Idempotency-Key": "k"}))
    assert sorted(status for status, _ in answers) == [200] * 49 + [202]
    assert {body["taskId"] for _, body in answers} == {Run.objects.get().pk}


@pytest.mark.postgresql
def test_parallel_inputs_to_a_run_that_is_over_start_one_run_and_all_are_heard(
    api: Api, worker: DrivenWorker, model: PlayedModel
) -> None:
    model.answers = [said("one"), said("two"), said("three")]
    old = worker.drive(submit(make_agent()))
    answers = together(lambda: api("POST", f"tasks/{old.pk}/input", {"message": "x"}), times=10)
    assert sorted(body["outcome"] for _, body in answers) == ["queued"] * 9 + ["restarted"]
    assert Run.objects.count() == 2
    worker.drive(old)
    assert heard_by(model.asked[2]) == ["x"] * 9


# --- sessions -----------------------------------------------------------------------------------------------------


@pytest.mark.postgresql
def test_of_a_session_one_run_is_at_work_and_the_next_starts_when_it_has_ended(worker: DrivenWorker) -> None:
    agent = make_agent(turns=[{"tools": [ask("Which one?")]}, {"text": "done"}], scale=5)
    first, second = (submit(agent, session_key="s") for _ in range(2))
    other = submit(agent, session_key="t")
    worker.drive(first)
    worker.sweep()
    assert [reload(run).status for run in (first, second, other)] == ["waiting", "pending", "waiting"]
    queue.respond(first, "this")
    worker.drive(first)
    assert [reload(run).status for run in (first, second)] == ["finished", "waiting"]


@pytest.mark.postgresql
def test_a_session_whose_workers_are_all_killed_is_free_for_the_next_run(
    worker: DrivenWorker, points: Points, driven_clock: DrivenClock
) -> None:
    agent = make_agent(turns=[{"tools": [bash("true")]}, {"text": "done"}], scale=5)
    first, second = (submit(agent, session_key="s") for _ in range(2))
    for number in range(1, 5):
        points.before(f"tool.start {number}", kill)
    for _ in range(4):
        with pytest.raises(Killed):
            worker.drive(first)
            worker.sweep()
        assert reload(second).status == "pending"
        worker.die()
        worker = other_worker(worker)
        worker.dead_owners()
        driven_clock.forward(10)
    worker.sweep()
    worker.drive(first)
    worker.sweep()
    worker.drive(second)
    assert error_of(reload(first))[0] == "WORKER_LOST"
    assert reload(second).status == "finished"


@pytest.mark.postgresql
def test_a_session_whose_host_died_is_free_for_the_next_run(
    worker: DrivenWorker, points: Points, driven_clock: DrivenClock
) -> None:
    agent = make_agent(turns=[{"tools": [bash("true")]}, {"text": "done"}], scale=5, retry="never")
    first, second = (submit(agent, session_key="s") for _ in range(2))
    points.before("tool.start 1", kill)
    with pytest.raises(Killed):
        worker.drive(first)
    gone = Host.objects.create(pk="gone", name="gone", last_seen_at=clock.now())
    Run.objects.filter(pk=first.pk).update(host=gone)
    Attempt.objects.filter(run=first).update(host=gone)
    worker.die()
    second_worker = other_worker(worker)
    second_worker.sweep()
    assert [reload(run).status for run in (first, second)] == ["processing", "pending"]
    driven_clock.forward((line.HOST_IS_DEAD + leases.TERM + timedelta(seconds=10)).total_seconds())
    second_worker._seen()
    second_worker.sweep()
    second_worker.drive(first)
    second_worker.sweep()
    second_worker.drive(second)
    assert error_of(reload(first))[0] == "SANDBOX_LOST"
    assert reload(second).status == "finished"


@pytest.mark.postgresql
def test_a_living_owner_keeps_its_session(worker: DrivenWorker, model: PlayedModel, driven_clock: DrivenClock) -> None:
    later = Future[Body]()
    model.answers = [later, said("two")]
    agent = make_agent(scale=5)
    first, second = (submit(agent, session_key="s") for _ in range(2))
    other = other_worker(worker)

    def look_around() -> None:
        until(lambda: model.asked)
        other.sweep()
        other.drive(second)
        assert [reload(run).status for run in (first, second)] == ["processing", "pending"]
        later.set_result(said("one"))

    with meanwhile(look_around):
        worker.drive(first)
    worker.drive(second)
    assert [reload(run).output for run in (first, second)] == ["one", "two"]


# --- rows that somebody, or some disk, has changed ----------------------------------------------------------------


def change_message(body: Any, position: int = 0) -> Callable[[Run], Any]:
    return lambda run: Message.objects.filter(attempt__run=run, position=position).update(body=body)


def lose_message(run: Run) -> None:
    Message.objects.filter(attempt__run=run, position=0).delete()


def lose_calls(run: Run) -> None:
    ToolCall.objects.filter(attempt__run=run).delete()


def change_definition(spec: Any) -> Callable[[Run], Any]:
    return lambda run: AgentVersion.objects.filter(agent=run.agent_id).update(spec=spec)


@pytest.mark.postgresql
@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (change_message(7), "message 0 of the transcript is none: 7"),
        (change_message({"role": "x"}), "message 0 of the transcript is none"),
        (change_message({"role": "user"}), "message 0 of the transcript is none"),
        (change_message({"role": "user", "parts": "text"}), "message 0 of the transcript is none"),
        (change_message({"role": "user", "parts": [7]}), "message 0 of the transcript has a part that is none: 7"),
        (change_message({"role": "user", "parts": [{"type": "text"}]}), "a part that is none"),
        (change_message({"role": "user", "parts": [{"type": "song", "text": "la"}]}), "a part that is none"),
        (
            change_message({"role": "assistant", "parts": [{"type": "tool_call", "id": "a", "name": "b"}]}, 1),
            "message 1",
        ),
        (lose_message, "message 0 of the transcript is missing"),
        (lose_calls, "message 1 of the transcript has 1 tool calls, and 0 are stored"),
        (change_definition([]), "the definition of dev that the run has cannot be read"),
        (change_definition({"name": 7}), "the definition of dev that the run has cannot be read"),
    ],
)
def test_a_run_whose_rows_cannot_be_read_fails_with_a_sentence_and_others_go_on(
    worker: DrivenWorker, points: Points, spoil: Callable[[Run], Any], words: str
) -> None:
    turns = [{"tools": [status("a")]}, {"tools": [status("b")]}, {"text": "done"}]
    sick = submit(make_agent(turns=turns))
    well = submit(make_agent("well", turns=turns))
    points.after("model.turn 1", lambda: spoil(sick))
    worker.drive(sick)
    worker.sweep()
    worker.drive(well)
    error, message = error_of(reload(sick))
    assert error == "CORRUPT"
    assert words in message
    assert reload(well).output == "done"
    assert not reload(sick).has_slot


def test_a_transcript_that_cannot_be_read_is_said_to_be(api: Api, worker: DrivenWorker) -> None:
    run = worker.drive(submit(make_agent(turns=[{"text": "done"}])))
    change_message(7)(run)
    assert code(api("GET", f"tasks/{run.pk}/context")) == (500, "CORRUPT")
    told_there = page(staff("runs.view_run"), of_run(run, "message/0/"))
    assert "message 0 of the transcript is none: 7" in told_there


def test_a_run_does_not_go_on_from_a_transcript_that_cannot_be_read(worker: DrivenWorker) -> None:
    old = worker.drive(submit(make_agent(turns=[{"text": "done"}])))
    change_message(7)(old)
    run = send(old, "Go on.").restarted
    assert run is not None
    assert error_of(worker.drive(run)) == ("CORRUPT", "message 0 of the transcript is none: 7")


def test_a_call_whose_arguments_are_no_arguments_is_told_to_the_model(worker: DrivenWorker, points: Points) -> None:
    run = submit(make_agent(turns=[{"tools": [status("a")]}, {"text": "done"}]))
    points.after("model.turn 1", lambda: ToolCall.objects.update(arguments=7))
    run = worker.drive(run)
    assert (run.status, run.output) == ("finished", "done")
    assert told(run) == [("the arguments of set_status are not a JSON object: 7", True)]


@pytest.mark.postgresql
def test_events_of_a_run_with_inputs_are_numbered_without_gaps(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("one"), said("two")]
    run = submit(make_agent())
    send(run, "more")
    run = worker.drive(run)
    assert [event["id"] for event in events.fetch(run.pk)] == list(range(1, run.last_event + 1))
    assert RunInput.objects.filter(state=InputState.DELIVERED).count() == 1
    assert lifecycle.TRANSITIONS["finish"][1] == run.status


# --- the admin and the command line -------------------------------------------------------------------------------


def test_an_operator_says_something_on_the_page_of_a_run(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("one"), said("two"), said("three")]
    run = submit(make_agent())
    client = staff("runs.view_run", "runs.change_run")
    assert 'name="mode"' in page(client, of_run(run))
    answer = press(client, of_run(run, "say/"), text="In red,\r\nplease.", mode="queue")
    assert "has your message: queued" in shown(answer)
    run = worker.drive(run)
    assert heard_by(model.asked[1]) == ["In red,\nplease."]
    answer = press(client, of_run(run, "say/"), text="Go on.", mode="followup")
    after = Run.objects.get(resumed_from=run)
    assert after.trigger == "manual"
    assert answer.redirect_chain[-1][0].endswith(of_run(after))


def test_who_may_only_look_says_nothing(worker: DrivenWorker) -> None:
    run = submit(make_agent())
    client = staff("runs.view_run")
    assert 'name="mode"' not in page(client, of_run(run))
    assert press(client, of_run(run, "say/"), text="x", mode="queue").status_code == 403
    assert not RunInput.objects.exists()


def test_a_mode_that_is_none_is_refused_on_the_page_too(worker: DrivenWorker) -> None:
    run = submit(make_agent())
    press(staff("runs.view_run", "runs.change_run"), of_run(run, "say/"), text="x", mode="collect")
    assert not RunInput.objects.exists()
