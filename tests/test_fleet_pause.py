"""The whole fleet paused: nothing starts, whatever asks, each is told why, and it is kept until somebody resumes."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django_celery_beat.models import PeriodicTask

from agents import clock
from agents.models import Agent, ApiToken
from agents.spec import AgentSpec
from runs import agent_calls, lifecycle, queue, reruns, sweep, ticks
from runs.models import Attempt, DeadLetter, Run, Status, TriggerKind
from tests.conftest import DrivenClock, DrivenWorker
from tests.making import make_agent, make_workspace, status, submit

pytestmark = pytest.mark.django_db(transaction=True)

THINKS: dict[str, Any] = {"turns": [{"text": "done"}]}


@pytest.fixture
def api(client: Client) -> Any:
    _, token = ApiToken.issue(make_workspace(), "test")
    headers = {"authorization": f"Bearer {token}"}

    def ask(method: str, path: str, body: Any = None) -> tuple[int, dict[str, Any]]:
        data = "" if body is None else json.dumps(body)
        answer = client.generic(method, f"/api/v1/{path}", data, content_type="application/json", headers=headers)
        return answer.status_code, answer.json()

    return ask


def pause() -> None:
    queue.pause_fleet(make_workspace())


def resume() -> None:
    queue.resume_fleet(make_workspace())


def fresh(agent: Agent) -> Agent:
    return Agent.objects.get(pk=agent.pk)


def test_the_fleet_is_paused_and_resumed_over_rest_and_says_so(api: Any) -> None:
    make_agent()
    answered, told = api("POST", "pause")
    assert (answered, told["fleet"]["paused"]) == (200, True)
    assert told["fleet"]["paused_at"] == api("POST", "pause")[1]["fleet"]["paused_at"], "twice is once"
    assert api("GET", "agents/dev")[1]["agent"]["refusal"] == "the fleet is paused"
    for path in ("task", "run"):
        answered, refused = api("POST", f"agents/dev/{path}", {"input": "x"})
        assert (answered, refused["error"]["code"]) == (409, "FLEET_PAUSED")
    assert api("POST", "resume") == (200, {"fleet": {"paused": False, "paused_at": None}})
    assert api("POST", "agents/dev/run", {"input": "x"})[0] == 202


def test_ticks_are_left_out_and_not_made_up_for(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    agent = make_agent(schedule="*/10 * * * *", **THINKS)
    ticks.mirror(agent)
    pause()
    assert not PeriodicTask.objects.get(name="default/dev").enabled
    driven_clock.forward(3600)
    sweep.fire_schedules(worker)
    resume()
    assert PeriodicTask.objects.get(name="default/dev").enabled
    sweep.fire_schedules(worker)
    assert not Run.objects.exists()
    driven_clock.forward(600)
    sweep.fire_schedules(worker)
    assert Run.objects.count() == 1


def test_what_is_in_line_waits_and_what_has_begun_goes_on(worker: DrivenWorker) -> None:
    agent = make_agent(turns=[{"tools": [status("thinking")]}, {"text": "done"}])
    begun, in_line = submit(agent), submit(agent)
    worker.answer_one()
    assert statuses(begun, in_line) == [Status.PROCESSING, Status.PENDING]
    pause()
    worker.drive(begun)
    worker.sweep()
    worker.drive(in_line)
    assert statuses(begun, in_line) == [Status.FINISHED, Status.PENDING]
    resume()
    worker.drive(in_line)
    assert statuses(begun, in_line) == [Status.FINISHED, Status.FINISHED]


def statuses(*runs: Run) -> list[str]:
    return [Run.objects.get(pk=run.pk).status for run in runs]


def test_calls_reruns_and_replays_are_refused(worker: DrivenWorker) -> None:
    caller, called = make_agent("caller", **THINKS), make_agent("called")
    run = submit(caller)
    lifecycle.claim(caller.pk, owner=worker.owner, host_id=worker.host_id)
    letter = DeadLetter.objects.create(
        workspace=caller.workspace, agent=called, code="QUEUE_FULL", trigger=TriggerKind.WEBHOOK, created_at=clock.now()
    )
    pause()
    with pytest.raises(agent_calls.Refused, match="scheduler is paused"):
        agent_calls.call(Attempt.objects.get(run=run), "called", "do it")
    assert agent_calls.described_to(Run.objects.get(pk=run.pk), AgentSpec(name="caller")) == []
    assert reruns.refusal(Run.objects.get(pk=run.pk), AgentSpec(name="caller")) == "the fleet is paused"
    with pytest.raises(queue.FleetPaused):
        queue.replay(DeadLetter.objects.get(pk=letter.pk))
    assert Run.objects.count() == 1


def test_an_agent_that_is_paused_itself_stays_so() -> None:
    agent = make_agent()
    queue.pause(agent)
    pause()
    resume()
    assert fresh(agent).refusal == "agent dev is paused"


def test_resuming_an_agent_that_was_not_paused_loses_no_tick(worker: DrivenWorker, driven_clock: DrivenClock) -> None:
    agent = make_agent(schedule="*/10 * * * *")
    driven_clock.forward(600)
    queue.resume(agent)
    resume()
    sweep.fire_schedules(worker)
    assert Run.objects.count() == 1


def test_the_front_page_pauses_and_resumes_and_says_since_when(client: Client) -> None:
    client.force_login(User.objects.create_superuser("operator"))
    make_agent()
    assert "Pause the fleet" in client.get("/admin/").content.decode()
    assert "Pause the fleet" in client.get("/admin/runs/run/pause-fleet/").content.decode()
    assert client.post("/admin/runs/run/pause-fleet/").status_code == 302
    assert fresh(Agent.objects.get()).refusal == "the fleet is paused"
    html = client.get("/admin/").content.decode()
    assert "The fleet is paused" in html
    assert "Resume the fleet" in html
    client.post("/admin/runs/run/resume-fleet/")
    assert "The fleet is paused" not in client.get("/admin/").content.decode()


def test_who_may_only_look_pauses_nothing(client: Client) -> None:
    client.force_login(User.objects.create_user("reader", is_staff=True))
    make_agent()
    assert "Pause the fleet" not in client.get("/admin/").content.decode()
    assert client.post("/admin/runs/run/pause-fleet/").status_code == 403
    assert fresh(Agent.objects.get()).refusal == ""
