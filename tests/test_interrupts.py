"""Somebody interrupts a run of a whole installation: real processes, a real engine, the command line."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import pytest

from tests.box import Box, kill, standing
from tests.doubles.anthropic import Asked, MockAnthropic, Reply

pytestmark = [pytest.mark.box, pytest.mark.engine, pytest.mark.timeout(180)]

PATIENCE = 60.0  # seconds; it takes less than five


@pytest.fixture(scope="module")
def shared_mock() -> Iterator[MockAnthropic]:
    with MockAnthropic() as mock:
        yield mock


@pytest.fixture
def mock(shared_mock: MockAnthropic) -> MockAnthropic:
    shared_mock.asked.clear()
    return shared_mock


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory, shared_mock: MockAnthropic) -> Iterator[Box]:
    """Each test's runs are over at its end."""
    with Box(tmp_path_factory.mktemp("box"), shared_mock) as box:
        box.agent("dev")
        yield box


def event(box: Box, run_id: str, type_: str) -> dict[str, Any]:
    return next(event for event in box.events(run_id) if event["type"] == type_)


def took(box: Box, run_id: str) -> float:
    """Seconds from the interrupt to the request that has it."""
    sent, heard = (
        datetime.fromisoformat(event(box, run_id, type_)["created_at"]) for type_ in ("input", "input.delivered")
    )
    return (heard - sent).total_seconds()


def processes(run_id: str) -> str:
    """What runs in the run's container."""
    container = standing(run_id)[0]
    return subprocess.run(["docker", "top", container], capture_output=True, text=True, check=True).stdout


def sleeps(asked: Asked) -> Reply:
    if asked.turn == 0:
        return Reply(tools=[("bash", {"command": "echo $$; echo ran >>ran; sleep 599; echo two"})])
    if asked.turn == 1:
        return Reply(tools=[("bash", {"command": "echo starts: $(wc -l <ran)"})])
    return Reply(text=asked.shown())


def test_a_command_is_ended_and_the_model_hears_why(box: Box, mock: MockAnthropic) -> None:
    mock.plan = sleeps
    run_id = box.start("dev")
    box.until(lambda: box.output(run_id), PATIENCE)
    assert "sleep 599" in processes(run_id)
    printed = box.cli("send", run_id, "Look at the tests first.", "--mode", "interrupt").stdout
    assert printed == f"{run_id} has it: interrupted\n"
    task = box.wait(run_id, within=PATIENCE)
    assert task["status"] == "finished", box.story(run_id)
    assert "starts: 1" in task["output"]
    assert took(box, run_id) < PATIENCE / 2
    results = [one["data"]["outputPreview"] for one in box.events(run_id) if one["type"] == "tool.end"]
    assert results[0].startswith("[interrupted by a person] ")
    assert [one["type"] for one in box.events(run_id)].count("sandbox.ready") == 1
    box.until(lambda: not standing(run_id), PATIENCE)


def test_a_worker_that_dies_over_an_interrupt_leaves_it_to_the_next(box: Box, mock: MockAnthropic) -> None:
    mock.plan = sleeps
    run_id = box.start("dev")
    box.until(lambda: box.output(run_id), PATIENCE)
    kill(box.pids()["worker"])
    sent = box.client.send(run_id, "Look at the tests first.", "interrupt")
    assert sent["outcome"] == "interrupted"
    task = box.wait(run_id, within=PATIENCE)
    assert task["status"] == "finished", box.story(run_id)
    assert "starts: 1" in task["output"]
    inputs = box.client.call("GET", f"tasks/{run_id}/inputs")["inputs"]
    assert [one["state"] for one in inputs] == ["delivered"]


def test_a_model_request_is_closed_and_asked_again(box: Box, mock: MockAnthropic) -> None:
    def plan(asked: Asked) -> Reply:
        return Reply(text="never heard", delay=120) if len(mock.asked) == 1 else Reply(text="as you say")

    mock.plan = plan
    run_id = box.start("dev")
    box.until(lambda: mock.asked, PATIENCE)
    began = time.monotonic()
    box.client.send(run_id, "Say less.", "interrupt")
    task = box.wait(run_id, within=PATIENCE)
    assert time.monotonic() - began < PATIENCE
    assert (task["status"], task["output"], len(mock.asked)) == ("finished", "as you say", 2)
    assert took(box, run_id) < PATIENCE / 2


def test_a_conversation_goes_on_after_the_end(box: Box, mock: MockAnthropic) -> None:
    mock.plan = lambda asked: Reply(text=f"answer {len(mock.asked)}")
    first = box.wait(box.start("dev"))
    sent = box.client.send(first["id"], "And now?")
    assert sent["outcome"] == "restarted"
    second = box.wait(sent["taskId"])
    assert (second["output"], second["resumed_from"], second["session_id"]) == ("answer 2", first["id"], first["id"])
    assert "answer 1" in str(box.client.call("GET", f"tasks/{second['id']}/context"))
