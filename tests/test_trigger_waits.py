"""Runs that wait for an event: it comes to them, once, instead of to a new run."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test import Client

from runs import agent_calls, inputs, queue
from runs.models import Attempt, InputMode, Run, TriggerKind, TriggerWait, TriggerWaitState
from tests.conftest import PATIENCE, DrivenClock, DrivenWorker, Points
from tests.making import ask, make_agent, submit
from tests.test_engine import Killed, kill, reload, successor, told, types
from tests.test_webhooks import SECRET, listen, make_source, signed, store_secret
from webhooks.models import Delivery

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def credentials(tmp_path: Path, settings: Any) -> None:
    settings.HOME = tmp_path
    store_secret(tmp_path, "default", SECRET)


def wait_for(type_: str = "webhook", **arguments: Any) -> dict[str, Any]:
    return {"name": "wait_for_trigger", "arguments": {"type": type_, **arguments}}


def waiting_run(worker: DrivenWorker, name: str = "waiter", *, runs: int = 1, **arguments: Any) -> list[Run]:
    """Runs of one agent that wait for such an event, and then are done."""
    agent = make_agent(name, turns=[{"tools": [wait_for(**arguments)]}, {"text": "done"}])
    found = [worker.drive(submit(agent)) for _ in range(runs)]
    assert [(run.status, run.wait_reason, run.has_slot) for run in found] == [("waiting", "trigger", False)] * runs
    return found


def comment(number: int = 7, text: str = "go on") -> bytes:
    return json.dumps(
        {
            "action": "created",
            "repository": {"full_name": "acme/app"},
            "sender": {"login": "ada"},
            "issue": {"number": number, "title": "It breaks", "user": {"login": "bob"}, "labels": []},
            "comment": {"id": number, "body": text, "html_url": "https://github.example/7", "user": {"login": "ada"}},
        }
    ).encode()


def deliver(body: bytes, event: str = "issue_comment") -> dict[str, Any]:
    headers = {"X-GitHub-Event": event, "X-Hub-Signature-256": signed(body)}
    answer = Client().post("/webhooks/github", body, content_type="application/json", headers=headers)
    assert answer.status_code == 200, answer.content
    told: dict[str, Any] = answer.json()
    return told


# --- webhooks -----------------------------------------------------------------------------------------------------


@pytest.mark.postgresql
def test_an_event_resumes_the_run_that_has_waited_longest_and_starts_none(worker: DrivenWorker) -> None:
    first, second = waiting_run(worker, runs=2, source="github", event="issue_comment")
    listen(first.agent, make_source(), events=["issue_comment"])
    assert deliver(comment(text="it works"))["matched"] == 1
    worker.answer_one()
    assert (reload(first).status, reload(second).status) == ("processing", "waiting")
    assert worker.drive(first).status == "finished"
    ((result, is_error),) = told(first)
    assert not is_error
    context = json.loads(result)
    assert (context["event"], context["comment"]) == ("issue_comment", "it works")
    delivery = Delivery.objects.get()
    assert (context["receiptId"], TriggerWait.objects.get(run=first).caused_by) == (delivery.pk, delivery.pk)
    deliver(comment(number=8))
    assert worker.drive(second).status == "finished"
    assert Run.objects.count() == 2
    deliver(comment(number=9))
    assert Run.objects.count() == 3


def test_an_event_that_does_not_fit_resumes_nothing(worker: DrivenWorker) -> None:
    (run,) = waiting_run(worker, event="push")
    make_source()
    assert deliver(comment())["matched"] == 0
    assert worker.drive(run).status == "waiting"


def test_other_agents_start_as_ever(worker: DrivenWorker) -> None:
    (run,) = waiting_run(worker)
    source = make_source()
    listen(run.agent, source)
    listen(make_agent("other"), source)
    assert deliver(comment())["matched"] == 2
    assert Run.objects.exclude(pk=run.pk).get().agent.name == "other"


@pytest.mark.postgresql
def test_a_repeated_delivery_resumes_nothing_more(worker: DrivenWorker) -> None:
    first, second = waiting_run(worker, runs=2)
    listen(first.agent, make_source())
    deliver(comment())
    repeat = deliver(comment())
    assert repeat["duplicate"]
    worker.drive(first)
    assert (reload(first).status, reload(second).status, Run.objects.count()) == ("finished", "waiting", 2)


@pytest.mark.postgresql
def test_events_at_the_same_time_each_resume_another_run(worker: DrivenWorker) -> None:
    runs = waiting_run(worker, runs=3)
    listen(runs[0].agent, make_source())

    def deliver_one(number: int) -> int:
        try:
            matched: int = deliver(comment(number))["matched"]
            return matched
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as threads:
        assert list(threads.map(deliver_one, range(4), timeout=PATIENCE)) == [1] * 4
    resumed = TriggerWait.objects.exclude(state=TriggerWaitState.WAITING)
    assert len(set(resumed.values_list("caused_by", flat=True))) == resumed.count() == 3
    assert Run.objects.filter(trigger="webhook").count() == 1


def test_an_unsigned_delivery_resumes_nothing(worker: DrivenWorker) -> None:
    (run,) = waiting_run(worker)
    make_source()
    answer = Client().post(
        "/webhooks/github", comment(), content_type="application/json", headers={"X-GitHub-Event": "issue_comment"}
    )
    assert answer.status_code == 401
    assert reload(run).status == "waiting"


@pytest.mark.postgresql
def test_the_sweep_resumes_a_run_whose_bell_was_lost(worker: DrivenWorker) -> None:
    (run,) = waiting_run(worker)
    make_source()
    deliver(comment())
    worker.rung.bells.clear()
    worker.sweep()
    assert worker.drive(run).status == "finished"


@pytest.mark.postgresql
@pytest.mark.parametrize("write", ["status.change 3", "run.resumed 1", "tool.end 1"])
def test_the_event_is_not_lost_with_the_worker(
    worker: DrivenWorker, points: Points, driven_clock: DrivenClock, write: str
) -> None:
    agent = make_agent("waiter", turns=[{"tools": [wait_for()]}, {"expect": ["it works"], "text": "done"}])
    run = worker.drive(submit(agent))
    make_source()
    points.before(write, kill)
    with pytest.raises(Killed):
        deliver(comment(text="it works"))
        worker.drive(run)
    run = successor(worker, driven_clock).drive(run)
    assert run.status == "finished"
    assert types(run).count("tool.start") == types(run).count("tool.end") == 1


# --- calls --------------------------------------------------------------------------------------------------------


def test_a_call_resumes_the_run_that_waits_for_its_caller(worker: DrivenWorker) -> None:
    """And the caller sees what comes of that run."""
    turns = [
        {"tools": [wait_for("agent_trigger", source_agent="caller")]},
        {"expect": ["here it is"], "tools": [{"name": "return_value", "arguments": {"value": "thanks"}}]},
        {"text": "done"},
    ]
    run = worker.drive(submit(make_agent("waiter", turns=turns)))
    others = worker.drive(submit(make_agent("stranger", turns=[{"tools": [ask("?")]}])))
    stranger = Attempt.objects.get(run=others)
    turns = [{"tools": [ask("?")]}]
    caller = Attempt.objects.get(run=worker.drive(submit(make_agent("caller", turns=turns))))
    agent_calls.call(stranger, "waiter", "me too")
    assert reload(run).status == "waiting"
    call_id = agent_calls.call(caller, "waiter", "here it is")
    assert agent_calls.run_of(call_id) == run.pk
    worker.drive(run)
    assert agent_calls.status(caller, call_id) == {"status": "completed", "returnValue": "thanks"}
    with pytest.raises(agent_calls.NoSuchCall):
        agent_calls.status(stranger, call_id)
    assert Run.objects.filter(parent=caller.run_id).count() == 0


# --- the end of waiting -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("arguments", "seconds"), [({"timeout": "30m"}, 1800), ({"timeout": "90s"}, 90), ({}, 1800)])
def test_when_the_time_is_up_the_model_is_told(
    worker: DrivenWorker, driven_clock: DrivenClock, arguments: dict[str, Any], seconds: int
) -> None:
    (run,) = waiting_run(worker, **arguments)
    make_source()
    driven_clock.forward(seconds - 10)
    worker.sweep()
    assert worker.drive(run).status == "waiting"
    driven_clock.forward(11)
    assert deliver(comment())["matched"] == 0
    worker.sweep()
    assert worker.drive(run).status == "finished"
    assert told(run) == [("[no such event came in time]", True)]
    assert TriggerWait.objects.get().state == TriggerWaitState.EXPIRED


@pytest.mark.parametrize("timeout", ["soon", "0s", "31d", "-5m", "1 h"])
def test_a_time_that_is_none_is_told_to_the_model(worker: DrivenWorker, timeout: str) -> None:
    agent = make_agent("waiter", turns=[{"tools": [wait_for(timeout=timeout)]}, {"text": "done"}])
    run = worker.drive(submit(agent))
    ((result, is_error),) = told(run)
    assert (run.status, is_error) == ("finished", True)
    assert "30m" in result


def test_a_canceled_run_waits_no_longer(worker: DrivenWorker) -> None:
    (run,) = waiting_run(worker)
    listen(run.agent, make_source())
    queue.cancel(run)
    assert TriggerWait.objects.get().state == TriggerWaitState.DROPPED
    deliver(comment())
    assert Run.objects.filter(trigger="webhook").count() == 1
    assert reload(run).status == "canceled"


def test_a_waiting_run_can_be_interrupted(worker: DrivenWorker) -> None:
    (run,) = waiting_run(worker)
    make_source()
    inputs.send(run, "never mind", InputMode.INTERRUPT, trigger=TriggerKind.API)
    assert worker.drive(run).status == "finished"
    assert told(run)[0][0].startswith("[interrupted")
    assert deliver(comment())["matched"] == 0


@pytest.mark.postgresql
def test_an_event_that_came_first_is_not_kept_from_an_interrupted_run(worker: DrivenWorker) -> None:
    (run,) = waiting_run(worker)
    make_source()
    deliver(comment(text="it works"))
    inputs.send(run, "never mind", InputMode.INTERRUPT, trigger=TriggerKind.API)
    worker.drive(run)
    assert "it works" in told(run)[0][0]
