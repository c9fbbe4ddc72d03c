"""What runs around the work: preflight, hooks and the commands in the instructions."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest

from runs import hands, inputs, queue
from runs.models import CallState, Event, InputMode, Message, Run, ToolCall, TriggerKind
from tests.conftest import DrivenClock, DrivenWorker, PlayedModel, Points, other_worker
from tests.making import bash, make_agent, said, submit

pytestmark = pytest.mark.django_db(transaction=True)


def shell(command: str, **rest: Any) -> dict[str, Any]:
    required = rest.pop("required", True)
    return {"provider": "shell", "required": required, "params": {"command": command, **rest}}


def error_of(run: Run) -> tuple[Any, Any]:
    assert run.status == "failed", run.status
    assert run.error is not None
    return run.error["code"], run.error["message"]


def ended(run: Run) -> list[tuple[str, bool]]:
    """The commands of a run, in the order of their ends."""
    data = run.events.filter(type="tool.end").order_by("number").values_list("data", flat=True)
    return [(item["toolName"], item["success"]) for item in data]


def shown(run: Run, part: int = 0) -> str:
    """What the model was first shown: its system text, or with 1 what it was asked."""
    return str(Message.objects.get(attempt__run=run, position=0).body["parts"][part]["text"])


def test_they_run_in_their_order_before_the_model_is_asked_and_after_it_has_answered(
    worker: DrivenWorker, model: PlayedModel
) -> None:
    model.answers = [said("looking", bash('cat "$HOME/order"')), said("done")]
    agent = make_agent(
        preflight=[shell("echo one >order"), shell("echo two >>order")],
        hooks_pre=["echo three >>order"],
        instructions="Go on from !`echo four >>order; wc -l <order`.",
        hooks_post=["cat order"],
    )
    run = worker.drive(submit(agent))
    assert (run.status, run.output) == ("finished", "done")
    assert "Go on from 4." in shown(run)
    assert model.asked[1].messages[-1]["parts"][0]["text"] == "one\ntwo\nthree\nfour\n"
    names = ["preflight", "preflight", "hooks.pre", "inject", "bash", "hooks.post"]
    assert ended(run) == [(name, True) for name in names]
    types = list(run.events.order_by("number").values_list("type", flat=True))
    assert types.index("model.start") > types.index("tool.end")
    assert types.count("sandbox.start") == 1


def test_what_they_print_is_seen_as_it_comes(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("done")]
    run = worker.drive(submit(make_agent(preflight=[shell("echo hello")])))
    assert Event.objects.get(run=run, type="output").data == {"callId": "pre-0", "text": "hello\n"}
    start = Event.objects.get(run=run, type="tool.start").data
    assert start["toolInput"] == {"provider": "shell", "required": True, "params": {"command": "echo hello"}}


def test_a_required_step_that_fails_ends_the_run_before_the_model_is_asked(
    worker: DrivenWorker, model: PlayedModel
) -> None:
    agent = make_agent(preflight=[shell("echo no such thing >&2; exit 3"), shell("echo never")])
    run = worker.drive(submit(agent))
    assert error_of(run) == (
        "PREFLIGHT_FAILED",
        'Required preflight step "shell" failed: no such thing / exit code 3',
    )
    assert model.asked == []
    assert ended(run) == [("preflight", False)]
    assert worker.engine.names() == []


def test_an_optional_step_that_fails_is_warned_of(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("done")]
    run = worker.drive(submit(make_agent(preflight=[shell("exit 3", required=False), shell("echo on")])))
    assert run.status == "finished"
    warned = Event.objects.get(run=run, type="warning").data
    assert warned == {"callId": "pre-0", "message": 'Optional preflight step "shell" failed: exit code 3'}


def test_a_step_that_nobody_knows_fails_as_any_other(worker: DrivenWorker, model: PlayedModel) -> None:
    run = worker.drive(submit(make_agent(preflight=[{"provider": "ftp", "params": {}}])))
    code, message = error_of(run)
    assert code == "PREFLIGHT_FAILED"
    assert "there is no preflight provider ftp" in message


def test_the_first_hook_that_fails_ends_the_run(worker: DrivenWorker, model: PlayedModel) -> None:
    run = worker.drive(submit(make_agent(hooks_pre=["true", "echo oh >&2; false", "echo never"])))
    assert error_of(run) == ("HOOK_FAILED", "hooks.pre[1] failed: oh / exit code 1")
    assert ended(run) == [("hooks.pre", True), ("hooks.pre", False)]


def test_a_hook_that_fails_behind_the_answer_is_an_event_and_no_more(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("done")]
    run = worker.drive(submit(make_agent(hooks_post=["false", "echo never"])))
    assert (run.status, run.output) == ("finished", "done")
    assert ended(run) == [("hooks.post", False)]
    assert Event.objects.filter(run=run, type="warning").count() == 1


def test_what_a_hook_exports_is_seen_by_the_agent(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("", bash('echo "$COLOUR"')), said("done")]
    agent = make_agent(hooks_pre=['echo "export COLOUR=green" >>"$AL_ENV_FILE"', 'test "$COLOUR" = green'])
    run = worker.drive(submit(agent))
    assert run.status == "finished"
    assert model.asked[1].messages[-1]["parts"][0]["text"] == "green\n"


def test_an_injected_command_that_fails_tells_the_model_why(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("done")]
    told = "A !`echo out; echo bad >&2; exit 3` B !`exit 4` C !`echo fine; echo quiet >&2`."
    run = worker.drive(submit(make_agent(instructions=told)))
    assert "A [Error: bad] B [Error: exit code 4] C fine." in shown(run)


def test_a_command_in_what_somebody_sent_is_not_run(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("done")]
    run = worker.drive(submit(make_agent(instructions="Be good."), input="Say !`echo owned`."))
    assert "Say !`echo owned`." in shown(run, 1)
    assert not ToolCall.objects.exists()


def test_what_a_command_printed_is_not_read_for_commands(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("done")]
    run = worker.drive(submit(make_agent(instructions="See !`printf '!\\140echo owned\\140'`.")))
    assert "See !`echo owned`." in shown(run)


def test_no_model_no_preparation(worker: DrivenWorker) -> None:
    agent = make_agent(models=[], preflight=[shell("echo never")])
    run = worker.drive(submit(agent))
    assert error_of(run)[0] == "NO_MODEL"
    assert not ToolCall.objects.exists()


# --- values -------------------------------------------------------------------------------------------------------


def test_a_variable_in_a_parameter_is_one_word_whatever_it_holds(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("", bash('ls "$HOME"; cat "$HOME/a b;touch owned/out"')), said("done")]
    nasty = 'echo \'export NASTY="a b;touch owned"\' >>"$AL_ENV_FILE"'
    steps = [shell(nasty), shell("echo $((1 + 1)) ${MISSING}end", output="${NASTY}/out")]
    run = worker.drive(submit(make_agent(preflight=steps)))
    assert run.status == "finished"
    listing = model.asked[1].messages[-1]["parts"][0]["text"]
    assert "\nowned" not in listing
    assert listing.endswith("2 end\n")


def test_a_shell_step_with_an_output_keeps_its_exit_code(worker: DrivenWorker, model: PlayedModel) -> None:
    run = worker.drive(submit(make_agent(preflight=[shell("echo x; echo why >&2; exit 7", output="deep/er/out")])))
    assert error_of(run)[1].endswith("why / exit code 7")


def test_an_output_that_is_too_large_fails_and_is_not_kept(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("", bash('ls "$HOME"')), said("done")]
    steps = [shell("head -c 60000000 /dev/zero", output="big", required=False)]
    run = worker.drive(submit(make_agent(preflight=steps)))
    assert "it printed more than 52428800 bytes" in Event.objects.get(run=run, type="warning").data["message"]
    assert "big" not in model.asked[1].messages[-1]["parts"][0]["text"]


# --- crashes ------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here; no code of ours catches it."""


def killed() -> None:
    raise Killed


AROUND: dict[str, Any] = {
    "preflight": [shell('echo pre >>"$HOME/ran"')],
    "hooks_pre": ['echo hook >>"$HOME/ran"'],
    "instructions": 'See !`echo inject >>"$HOME/ran"; echo injected`.',
    "hooks_post": ['echo post >>"$HOME/ran"; cat "$HOME/ran"'],
}
POINTS = [
    *("silent 1", "sandbox.ready 1", "tool.start 1", "tool.end 1", "tool.start 3", "tool.end 3"),
    *("model.start 1", "model.turn 1", "tool.start 4", "output 1"),
]


@pytest.mark.postgresql
@pytest.mark.parametrize("point", POINTS)
def test_whoever_dies_when_each_is_run_once_and_the_prompt_is_the_same(
    worker: DrivenWorker, model: PlayedModel, points: Points, driven_clock: DrivenClock, point: str
) -> None:
    model.answers = [said("done"), said("done")]
    second = other_worker(worker)
    run = submit(make_agent(**AROUND))
    points.after(point, killed)
    with pytest.raises(Killed):
        worker.drive(run)
    worker.die()
    for _ in range(3):
        driven_clock.forward(4)
        second.sweep()
        run = second.drive(run)
    assert run.status == "finished", run.error
    said_last = Event.objects.filter(run=run, type="output", data__callId__startswith="post").get().data["text"]
    assert said_last == "pre\nhook\ninject\npost\n"
    assert "See injected." in shown(run)


def test_a_required_step_whose_sandbox_is_lost_fails_the_attempt_and_is_not_repeated(
    worker: DrivenWorker, model: PlayedModel, points: Points
) -> None:
    run = submit(make_agent(preflight=[shell("echo one; sleep 600")]))
    points.after("output 1", lambda: worker.engine.remove(run.attempts.get().sandbox_name))
    run = worker.drive(run)
    assert error_of(run)[0] == "SANDBOX_LOST"
    assert ToolCall.objects.get().state == CallState.LOST
    assert model.asked == []


def test_an_optional_step_whose_sandbox_is_lost_lets_the_run_go_on(
    worker: DrivenWorker, model: PlayedModel, points: Points
) -> None:
    model.answers = [said("done")]
    run = submit(make_agent(preflight=[shell("echo one; sleep 600", required=False), shell("echo two")]))
    points.after("output 1", lambda: worker.engine.remove(run.attempts.get().sandbox_name))
    run = worker.drive(run)
    assert run.status == "finished"
    assert [call.state for call in ToolCall.objects.order_by("index")] == [CallState.LOST, CallState.DONE]


def test_a_cancel_ends_what_is_under_way(worker: DrivenWorker, model: PlayedModel, points: Points) -> None:
    run = submit(make_agent(preflight=[shell("echo one; sleep 600")]))

    def is_canceled() -> None:
        queue.cancel(run)
        worker.look(run.pk)

    points.after("output 1", is_canceled)
    run = worker.drive(run)
    assert (run.status, model.asked, worker.engine.names()) == ("canceled", [], [])


def test_the_limits_of_the_run_hold(worker: DrivenWorker, model: PlayedModel) -> None:
    late = worker.drive(submit(make_agent(preflight=[shell("sleep 600")]), wall_seconds=1))
    assert error_of(late)[0] in {"TIMEOUT", "PREFLIGHT_FAILED"}  # the sandbox's own watchdog may be first
    loud = make_agent("loud", preflight=[shell("yes | head -c 300000; sleep 600")], limits={"output_bytes": 100_000})
    assert error_of(worker.drive(submit(loud)))[0] == "OUTPUT_LIMIT"


def test_a_long_step_is_followed_from_stretch_to_stretch(
    worker: DrivenWorker, model: PlayedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hands, "STRETCH", 0.2)
    model.answers = [said("done")]
    slow = "echo began; until [ -e on ]; do sleep 0.05; done; echo ended"
    run = worker.drive(submit(make_agent(preflight=[shell(f"(sleep 0.7; true >on) & {slow}")])))
    assert run.status == "finished"
    assert "".join(event.data["text"] for event in run.events.filter(type="output")) == "began\nended\n"
    assert ended(run) == [("preflight", True)]
    assert run.lease_epoch > 1


def test_hooks_come_behind_the_last_answer_of_all(worker: DrivenWorker, model: PlayedModel, points: Points) -> None:
    model.answers = [said("first"), said("second")]
    run = submit(make_agent(hooks_post=["echo hook"]))
    more = partial(inputs.send, run, "And the other one?", InputMode.QUEUE, trigger=TriggerKind.API)
    points.after("sandbox.start 1", more)
    run = worker.drive(run)
    assert (run.status, run.output) == ("finished", "second")
    kinds = run.events.filter(type__in=["model.turn", "input.delivered", "tool.start"]).order_by("number")
    assert [event.type for event in kinds] == ["model.turn", "input.delivered", "model.turn", "tool.start"]


def test_a_failed_preparation_is_tried_again_where_the_agent_says_so(
    worker: DrivenWorker, model: PlayedModel, driven_clock: DrivenClock
) -> None:
    policy = {"most": 2, "after": ["work"], "delay_seconds": 10}
    run = worker.drive(submit(make_agent(hooks_pre=["false"], retry="always", attempts=policy)))
    assert (run.status, run.wait_reason) == ("waiting", "retry")
    driven_clock.forward(20)
    worker.sweep()
    run = worker.drive(run)
    assert error_of(run)[0] == "HOOK_FAILED"
    assert run.attempts.count() == 2
