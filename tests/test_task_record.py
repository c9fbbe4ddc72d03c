"""What a task may ask for and what its record tells: limits, keys, cost, attempts, reruns."""

from __future__ import annotations

import json
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from agents import clock
from agents.models import ApiToken
from runs import events
from runs.models import Attempt, Run
from tests.making import make_agent, make_workspace, submit

pytestmark = pytest.mark.django_db(transaction=True)


class Api:
    """A caller with a token."""

    def __init__(self) -> None:
        _, self.token = ApiToken.issue(make_workspace(), "test")

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        answer = Client().generic(
            method,
            f"/api/v1/{path}",
            data="" if body is None else json.dumps(body),
            content_type="application/json",
            headers={"Authorization": f"Bearer {self.token}", **headers},
        )
        return answer.status_code, json.loads(answer.content)

    def task(self, run: Run) -> dict[str, Any]:
        _, body = self("GET", f"tasks/{run.pk}")
        task: dict[str, Any] = body["task"]
        return task


@pytest.fixture
def api(db: None) -> Api:
    return Api()


def test_a_task_may_bring_its_own_limits_and_keys(api: Api) -> None:
    make_agent()
    asked = {
        "input": "x",
        "maxIdleSeconds": 30,
        "costBudgetUsd": "0.25",
        "maxOutputBytes": 1000,
        "sessionKey": "chat-1",
        "claimKey": "issues/7",
    }
    assert api("POST", "agents/dev/task", asked)[0] == 202
    run = Run.objects.get()
    assert (run.idle_seconds, run.cost_budget, run.output_limit) == (30, Decimal("0.25"), 1000)
    assert (run.session_key, run.claim_key) == ("chat-1", "issues/7")
    told = api.task(run)
    assert (told["session_id"], told["claim_key"]) == ("chat-1", "issues/7")
    assert told["limits"] == {
        "turns": 50,
        "wall_seconds": 900,
        "idle_seconds": 30,
        "tokens": 1_000_000,
        "usd": "0.250000",
        "output_bytes": 1000,
    }


@pytest.mark.postgresql
def test_a_budget_may_be_a_number_and_keeps_its_digits(api: Api) -> None:
    make_agent()
    assert api("POST", "agents/dev/run", {"costBudgetUsd": 0.1})[0] == 202
    assert Run.objects.get().cost_budget == Decimal("0.1")


@pytest.mark.parametrize(
    "field",
    [
        {"maxIdleSeconds": -1},
        {"costBudgetUsd": "-0.01"},
        {"costBudgetUsd": "0.0000001"},
        {"costBudgetUsd": 100_001},
        {"costBudgetUsd": "NaN"},
        {"costBudgetUsd": "Infinity"},
        {"costBudgetUsd": True},
        {"maxOutputBytes": 2**60},
        {"sessionKey": ""},
        {"sessionKey": 5},
        {"claimKey": "k" * 201},
        {"claimKey": None},
    ],
)
def test_a_limit_or_key_that_does_not_fit_is_refused_by_its_name(api: Api, field: dict[str, Any]) -> None:
    make_agent()
    status, body = api("POST", "agents/dev/task", {"input": "x", **field})
    assert (status, body["error"]["code"]) == (400, "VALIDATION_ERROR")
    assert next(iter(field)) in body["error"]["message"]
    assert not Run.objects.exists()


@pytest.mark.postgresql
def test_a_request_is_the_same_however_its_budget_is_written(api: Api) -> None:
    make_agent()
    key = {"Idempotency-Key": "k"}
    first = api("POST", "agents/dev/task", {"input": "x", "costBudgetUsd": "0.50"}, **key)
    second = api("POST", "agents/dev/task", {"input": "x", "costBudgetUsd": 0.5}, **key)
    other = api("POST", "agents/dev/task", {"input": "x", "costBudgetUsd": 0.51}, **key)
    assert (first[0], second[0], other[0]) == (202, 200, 409)
    assert first[1]["taskId"] == second[1]["taskId"]


def test_a_key_given_before_there_were_later_fields_still_stands_for_its_task(api: Api) -> None:
    """What an earlier version stored as the digest of a request without them."""
    run = submit(make_agent(), idempotency_key="old", input="x", max_turns=None, wall_seconds=None, token_budget=None)
    Run.objects.filter(pk=run.pk).update(trigger="manual")
    status, body = api("POST", "agents/dev/run", {"input": "x"}, **{"Idempotency-Key": "old"})
    assert (status, body["taskId"]) == (200, run.pk)


def test_limits_a_task_does_not_bring_are_its_agents(api: Api) -> None:
    make_agent(limits={"idle_seconds": 60, "usd": "2.5", "output_bytes": 0})
    api("POST", "agents/dev/run", {})
    told = api.task(Run.objects.get())["limits"]
    assert (told["idle_seconds"], told["usd"], told["output_bytes"]) == (60, "2.500000", 0)


def test_a_budget_of_zero_means_none_although_the_agent_has_one(api: Api) -> None:
    make_agent(limits={"usd": "2.5", "idle_seconds": 60})
    api("POST", "agents/dev/run", {"costBudgetUsd": 0, "maxIdleSeconds": 0})
    told = api.task(Run.objects.get())["limits"]
    assert (told["usd"], told["idle_seconds"]) == ("0.000000", 0)


def test_what_a_run_has_spent_and_tried_is_told(api: Api) -> None:
    run = submit(make_agent())
    assert (api.task(run)["attempts"], api.task(run)["deadline_at"], api.task(run)["exit_code"]) == (0, None, None)
    deadline = clock.now() + timedelta(minutes=1)
    spent = {"cost": Decimal("0.012345"), "output_bytes": 77, "exit_code": 3, "deadline_at": deadline}
    Run.objects.filter(pk=run.pk).update(**spent)
    for number in (1, 2):
        Attempt.objects.create(run=run, number=number)
    told = api.task(run)
    assert (told["cost_usd"], told["output_bytes"], told["exit_code"], told["attempts"]) == ("0.012345", 77, 3, 2)
    assert told["deadline_at"] == events.isoformat(deadline)


def test_a_rerun_and_a_resumption_name_the_run_before(api: Api) -> None:
    agent = make_agent()
    first, second = submit(agent), submit(agent)
    assert (api.task(first)["rerun_of"], api.task(first)["resumed_from"]) == (None, None)
    Run.objects.filter(pk=second.pk).update(rerun_of=first, rerun_number=1, resumed_from=first)
    told = api.task(second)
    assert (told["rerun_of"], told["rerun_number"], told["resumed_from"]) == (first.pk, 1, first.pk)


@pytest.mark.postgresql
def test_a_list_of_tasks_costs_the_same_however_many_there_are(api: Api) -> None:
    def some(prefix: str, count: int) -> None:
        for number in range(count):
            run = submit(make_agent(f"{prefix}-{number}"))
            Attempt.objects.create(run=run)
            Run.objects.filter(pk=run.pk).update(version=run.agent.version)
            submit(run.agent)

    def cost() -> int:
        with CaptureQueriesContext(connection) as captured:
            _, body = api("GET", "tasks?limit=200")
        assert len(body["tasks"]) == Run.objects.count()
        return len(captured.captured_queries)

    some("few", 2)
    cost()
    few = cost()
    some("many", 10)
    assert cost() == few
