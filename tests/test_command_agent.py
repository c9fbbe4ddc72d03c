"""Agents of kind `command`: the program in the sandbox is the agent, and its exit code the outcome."""

from __future__ import annotations

from typing import Any

import pytest

from agents.manifest import parse
from agents.models import Agent, AgentFile
from runs import queue
from runs.models import CallState, Run, ToolCall
from tests.conftest import DrivenClock, DrivenWorker, Points, other_worker
from tests.making import make_agent, submit

pytestmark = pytest.mark.django_db(transaction=True)


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


LOOK = 'cat >copy; cmp copy "$AGENTFLEET_PROMPT_FILE" && printf %s "$PROMPT" | cmp - copy && echo all the same'


def test_its_prompt_is_in_a_file_and_a_variable_too(worker: DrivenWorker) -> None:
    run = worker.drive(submit(program(LOOK), input='Say `hello` "there" $HOME\\n'))
    assert run.output == "all the same\n"


def test_a_prompt_too_long_for_a_variable_is_not_in_one(worker: DrivenWorker) -> None:
    look = 'wc -c <"$AGENTFLEET_PROMPT_FILE"; echo "[${PROMPT-none}]"'
    run = worker.drive(submit(program(look), input="x" * 200_000))
    size, _, rest = str(run.output).partition("\n")
    assert int(size) > 200_000
    assert rest == "[none]\n"


def test_its_words_may_be_a_list_that_no_shell_reads(worker: DrivenWorker) -> None:
    run = worker.drive(submit(program(["echo", "$HOME; exit 3"])))
    assert (run.status, run.output) == ("finished", "$HOME; exit 3\n")


@pytest.mark.parametrize("code", [1, 10, 16, 137])
def test_any_other_exit_code_is_a_failure_that_says_which(worker: DrivenWorker, code: int) -> None:
    run = worker.drive(submit(program(f"echo so far; exit {code}")))
    assert (code_of(run), run.exit_code) == (f"EXIT_{code}", code)
    assert printed(run) == "so far\n"


def test_an_exit_code_with_a_meaning_says_it(worker: DrivenWorker) -> None:
    run = worker.drive(submit(program("exit 10")))
    assert run.error is not None
    assert run.error["message"] == "the agent's program ended with exit code 10: Authentication/credentials failure"


@pytest.mark.parametrize(
    ("left", "code", "outcome"),
    [
        ("echo 11 >exit; true >rerun", 0, ("failed", "EXIT_11", 11, None)),
        ("echo 0 >exit", 3, ("finished", None, 0, None)),
        ("true >rerun; printf four >return", 0, ("finished", None, 42, "four")),
        ("printf four >return", 0, ("finished", None, 0, "four")),
        ("true >rerun", 3, ("failed", "EXIT_3", 3, None)),
    ],
)
def test_what_it_left_in_signal_files_counts_first(
    worker: DrivenWorker, left: str, code: int, outcome: tuple[Any, ...]
) -> None:
    command = f'mkdir -p "$AL_SIGNAL_DIR"; (cd "$AL_SIGNAL_DIR"; {left}); exit {code}'
    run = worker.drive(submit(program(command, max_reruns=0)))
    assert (run.status, (run.error or {}).get("code"), run.exit_code, run.return_value) == outcome


def test_hooks_run_around_it(worker: DrivenWorker) -> None:
    hooks = {"hooks_pre": ['echo "export COLOUR=green" >>"$AL_ENV_FILE"'], "hooks_post": ['cat "$HOME/said"']}
    run = worker.drive(submit(program('echo "$COLOUR" | tee "$HOME/said"; cat | grep Branch', **hooks, **INJECTED)))
    assert (run.status, run.output) == ("finished", "green\nBranch main.\n")
    assert [call.name for call in ToolCall.objects.order_by("pk")] == ["hooks.pre", "inject", "command", "hooks.post"]
    assert printed(run) == "green\nBranch main.\ngreen\n"


INJECTED = {"instructions": "Branch !`echo main`."}


def test_no_hook_follows_a_program_that_failed(worker: DrivenWorker) -> None:
    run = worker.drive(submit(program("exit 3", hooks_post=["true"])))
    assert code_of(run) == "EXIT_3"
    assert ToolCall.objects.count() == 1


def test_a_preparation_that_fails_keeps_it_from_starting(worker: DrivenWorker) -> None:
    run = worker.drive(submit(program("echo never", hooks_pre=["false"])))
    assert code_of(run) == "HOOK_FAILED"
    assert printed(run) == ""


def test_a_folder_with_a_test_script_runs_it_in_place_of_a_model(worker: DrivenWorker) -> None:
    files = {
        "config.toml": b"[model]\nprovider = 'scripted'\nmodel = 'none.yaml'\n",
        "agents/dev/config.toml": b"credentials = []\nschedule = '@daily'\nnetwork = 'none'\n",
        "agents/dev/SKILL.md": b"Never read.\n",
        "agents/dev/test-script.sh": b'echo from the script; [ "$PWD" = "$HOME" ] && exit 42\n',
    }
    spec = parse(files, project="p").project.agents[0]
    agent = make_agent(**{**spec.dump(), "max_reruns": 0})
    assert agent.version is not None
    AgentFile.objects.create(version=agent.version, path="test-script.sh", content=files["agents/dev/test-script.sh"])
    run = worker.drive(submit(agent))
    assert (run.status, run.exit_code, run.output) == ("finished", 42, "from the script\n")


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
        worker.lease_thread.halt_overdue()

    points.after("output 1", time_passes)
    run = worker.drive(run)
    assert (code_of(run), run.exit_code) == ("TIMEOUT", 124)
    assert worker.engine.names() == []


def test_the_sandbox_ends_it_in_time_when_nobody_follows(worker: DrivenWorker) -> None:
    run = worker.drive(submit(program("echo one; sleep 600"), wall_seconds=1))
    assert (code_of(run), run.exit_code) == ("TIMEOUT", 124)


class Killed(BaseException):
    """The process ends here; no code of ours catches it."""


@pytest.mark.postgresql
@pytest.mark.parametrize("point", ["tool.start 1", "output 1", "tool.start 2", "output 2"])
def test_it_and_its_hooks_run_once_whoever_dies(
    worker: DrivenWorker, points: Points, driven_clock: DrivenClock, point: str
) -> None:
    def killed() -> None:
        raise Killed

    second = other_worker(worker)
    run = submit(program('echo ran | tee -a "$HOME/ran"', hooks_post=['echo hook >>"$HOME/ran"; cat "$HOME/ran"']))
    points.after(point, killed)
    with pytest.raises(Killed):
        worker.drive(run)
    worker.die()
    for _ in range(2):
        driven_clock.forward(3)
        second.sweep()
        run = second.drive(run)
    assert (run.status, run.output) == ("finished", "ran\n")
    assert printed(run) == "ran\nran\nhook\n"


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
