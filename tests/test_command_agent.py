"""Agents of kind `command`: the program in the sandbox is the agent, and its exit code the outcome."""

from __future__ import annotations

from typing import Any

import pytest

from agents.models import Agent
from runs import queue
from runs.models import CallState, Run, ToolCall
from tests.conftest import DrivenClock, DrivenWorker, Points, other_worker
from tests.making import make_agent, submit

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgresql]


def program(command: Any, **changes: Any) -> Agent:
    return make_agent(**{"kind": "command", "command": command, "models": [], **changes})


def printed(run: Run) -> str:
    return "".join(event.data["text"] for event in run.events.filter(type="output").order_by("number"))


def code_of(run: Run) -> Any:
    assert run.status == "failed", run.status
    assert run.error is not None
    return run.error["code"]


def test_a_program_that_ends_well_has_done_the_work(worker: DrivenWorker) -> None:
    run = worker.drive(submit(program("echo hello; echo there"), input="Say hello."))
    assert (run.status, run.exit_code, run.output) == ("finished", 0, "hello\nthere\n")
    assert printed(run) == "hello\nthere\n"
    assert (run.turns, run.tokens) == (0, 0)
    assert worker.engine.names() == []


def test_its_prompt_comes_on_standard_input(worker: DrivenWorker) -> None:
    run = worker.drive(submit(program("cat", instructions="# Review\n\nBe brief."), input="Look at pull request 7."))
    assert run.output is not None
    assert "Be brief." in run.output
    assert "Look at pull request 7." in run.output


def test_its_words_may_be_a_list_that_no_shell_reads(worker: DrivenWorker) -> None:
    run = worker.drive(submit(program(["echo", "$HOME; exit 3"])))
    assert (run.status, run.output) == ("finished", "$HOME; exit 3\n")


@pytest.mark.parametrize("code", [1, 10, 16, 137])
def test_any_other_exit_code_is_a_failure_that_says_which(worker: DrivenWorker, code: int) -> None:
    run = worker.drive(submit(program(f"echo so far; exit {code}")))
    assert (code_of(run), run.exit_code) == (f"EXIT_{code}", code)
    assert printed(run) == "so far\n"


def test_42_asks_for_another_run(worker: DrivenWorker) -> None:
    agent = program("exit 42", max_reruns=2)
    worker.drive(submit(agent))
    runs = Run.objects.filter(agent=agent).order_by("pk")
    assert [(run.status, run.trigger, run.exit_code) for run in runs] == [
        ("finished", "manual", 42),
        ("finished", "rerun", 42),
        ("finished", "rerun", 42),
    ]


def test_a_program_that_is_out_of_time_ends_with_124(
    worker: DrivenWorker, points: Points, driven_clock: DrivenClock
) -> None:
    run = submit(program("echo one; sleep 600", limits={"wall_seconds": 60}))

    def time_passes() -> None:
        driven_clock.forward(61)
        worker._halt_overdue()

    points.after("output 1", time_passes)
    run = worker.drive(run)
    assert (code_of(run), run.exit_code) == ("TIMEOUT", 124)
    assert worker.engine.names() == []


def test_the_sandbox_ends_it_in_time_when_nobody_follows(worker: DrivenWorker) -> None:
    run = worker.drive(submit(program("echo one; sleep 600"), wall_seconds=1))
    assert (code_of(run), run.exit_code) == ("TIMEOUT", 124)


class Killed(BaseException):
    """The process ends here; no code of ours catches it."""


def test_it_runs_on_while_its_worker_dies_and_another_follows(
    worker: DrivenWorker, points: Points, driven_clock: DrivenClock
) -> None:
    second = other_worker(worker)
    run = submit(program("echo ran >> ran; echo one; while [ ! -e on ]; do sleep 0.05; done; echo two; wc -l < ran"))

    def killed() -> None:
        (worker.fake._workspace(run.attempts.get().sandbox_name) / "on").touch()
        raise Killed

    points.after("output 1", killed)
    with pytest.raises(Killed):
        worker.drive(run)
    worker.die()
    second.sweep()
    driven_clock.forward(2)
    second.sweep()
    run = second.drive(run)
    assert run.status == "finished"
    assert printed(run) == "one\ntwo\n1\n"


def test_a_lost_sandbox_is_not_started_over(worker: DrivenWorker, points: Points) -> None:
    run = submit(program("echo one; sleep 600"))
    points.after("output 1", lambda: worker.engine.remove(run.attempts.get().sandbox_name))
    run = worker.drive(run)
    assert code_of(run) == "SANDBOX_LOST"
    assert ToolCall.objects.get().state == CallState.LOST
    assert run.attempts.count() == 1


def test_a_lost_sandbox_is_started_over_where_the_agent_says_so(
    worker: DrivenWorker, points: Points, driven_clock: DrivenClock
) -> None:
    run = submit(program("echo one; [ -e again ] || sleep 600", retry="always", limits={"wall_seconds": 5}))
    points.after("output 1", lambda: worker.engine.remove(run.attempts.get().sandbox_name))
    run = worker.drive(run)
    assert (run.status, run.wait_reason) == ("waiting", "retry")
    assert run.attempts.count() == 2
    assert worker.engine.names() == []


def test_a_cancel_stops_the_program(worker: DrivenWorker, points: Points) -> None:
    run = submit(program("echo one; sleep 600"))

    def is_canceled() -> None:
        queue.cancel(run)
        worker.look(run.pk)

    points.after("output 1", is_canceled)
    run = worker.drive(run)
    assert run.status == "canceled"
    assert worker.engine.names() == []
