"""Whole runs on a scripted model and the fake sandbox, driven bell by bell."""

from __future__ import annotations

import pytest

from runs import events
from runs.models import Attempt, CallState, Run, SandboxState, ToolCall
from tests.conftest import DrivenWorker
from tests.making import bash, make_agent, submit

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgresql]


def types(run: Run) -> list[str]:
    return [event["type"] for event in events.fetch(run.pk)]


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
