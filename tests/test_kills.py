"""Parts of a running box are killed or frozen; the run goes on, the command runs once, no line is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.box import Box, kill
from tests.doubles.anthropic import Asked, MockAnthropic, Reply

pytestmark = [pytest.mark.box, pytest.mark.engine, pytest.mark.timeout(180)]

# Ten lines in ten seconds, each once; `ran` counts how often the command was started.
SLOW = "echo started >> ran; for i in 1 2 3 4 5 6 7 8 9 10; do echo line $i; sleep 1; done; echo starts: $(wc -l < ran)"
LINES = "".join(f"line {i}\n" for i in range(1, 11)) + "starts: 1\n"


@pytest.fixture
def mock() -> Iterator[MockAnthropic]:
    with MockAnthropic() as mock:
        yield mock


@pytest.fixture
def box(tmp_path: Path, mock: MockAnthropic) -> Iterator[Box]:
    with Box(tmp_path, mock) as box:
        box.agent("dev")
        yield box


def slow_command(asked: Asked) -> Reply:
    if asked.turn == 0:
        return Reply(tools=[("bash", {"command": SLOW})])
    return Reply(text=f"result: {asked.shown()}")


def assert_whole(box: Box, run_id: str) -> None:
    """The run finished, its command ran once, and every event and line is there once."""
    task = box.wait(run_id)
    assert task["status"] == "finished", box.story(run_id)
    assert box.output(run_id) == LINES
    numbers = [event["id"] for event in box.events(run_id)]
    assert numbers == list(range(1, len(numbers) + 1))
    assert task["eventCount"] == len(numbers)
    assert "starts: 1" in task["output"]
    assert_nothing_left(box, run_id)


def assert_nothing_left(box: Box, run_id: str) -> None:
    def left() -> str:
        filters = ["--filter", f"label=agentfleet.run={run_id}"]
        containers = subprocess.run(["docker", "ps", "-aq", *filters], capture_output=True, text=True, check=True)
        volumes = subprocess.run(["docker", "volume", "ls", "-q", *filters], capture_output=True, text=True, check=True)
        return containers.stdout + volumes.stdout

    box.until(lambda: left() == "", 20)


def test_a_worker_killed_in_a_model_request(box: Box, mock: MockAnthropic) -> None:
    def plan(asked: Asked) -> Reply:
        if len(mock.asked) == 1:
            return Reply(text="never heard", delay=60)
        return Reply(text="second answer")

    mock.plan = plan
    run_id = box.start("dev")
    box.until(lambda: mock.asked)
    kill(box.pids()["worker"])
    task = box.wait(run_id, within=30)
    assert (task["status"], task["output"]) == ("finished", "second answer"), box.story(run_id)
    assert len(mock.asked) == 2
    lost = [event for event in box.events(run_id) if event["type"] == "model.lost"]
    assert len(lost) == 1
    assert task["token_input"] == 100 + lost[0]["data"]["estimatedTokens"]
    assert_nothing_left(box, run_id)


def test_a_worker_killed_in_a_command(box: Box, mock: MockAnthropic) -> None:
    mock.plan = slow_command
    run_id = box.start("dev")
    box.until(lambda: "line 3" in box.output(run_id))
    kill(box.pids()["worker"])
    assert_whole(box, run_id)
    assert len(mock.asked) == 2


def test_a_worker_frozen_in_a_command_for_longer_than_a_lease(box: Box, mock: MockAnthropic) -> None:
    mock.plan = slow_command
    run_id = box.start("dev")
    box.until(lambda: "line 3" in box.output(run_id))
    frozen = box.pids()["worker"]
    os.kill(frozen, signal.SIGSTOP)
    second = box.worker()
    task = box.wait(run_id, within=60)
    assert task["status"] == "finished", box.story(run_id)
    os.kill(frozen, signal.SIGCONT)
    assert_whole(box, run_id)
    # Awake again, it has let go of the run, and takes new ones.
    second.terminate()
    second.wait(15)
    mock.plan = lambda asked: Reply(text="still here")
    again = box.wait(box.start("dev"))
    assert again["output"] == "still here"


def test_the_only_worker_frozen_and_continued(box: Box, mock: MockAnthropic) -> None:
    mock.plan = slow_command
    run_id = box.start("dev")
    box.until(lambda: "line 3" in box.output(run_id))
    worker = box.pids()["worker"]
    os.kill(worker, signal.SIGSTOP)
    time.sleep(22)
    os.kill(worker, signal.SIGCONT)
    assert_whole(box, run_id)
    assert box.pids()["worker"] == worker


def test_redis_killed_in_a_step(box: Box, mock: MockAnthropic) -> None:
    mock.plan = slow_command
    worker = box.pids()["worker"]
    run_id = box.start("dev")
    box.until(lambda: "line 3" in box.output(run_id))
    kill(box.pids()["redis"])
    assert_whole(box, run_id)
    assert box.pids()["worker"] == worker
    mock.plan = lambda asked: Reply(text="bells ring again")
    assert box.wait(box.start("dev"), within=20)["output"] == "bells ring again"
