"""What stands beside a run in the admin: what it may still spend, what it was tried with, which runs belong to it."""

from __future__ import annotations

import re
from datetime import timedelta
from decimal import Decimal

import pytest
from django.contrib.auth.models import User
from django.test import Client

from agents import clock
from agents.models import Agent
from runs import breaker, facts
from runs.models import Attempt, Message, Run, Status
from tests.making import make_agent, submit

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def operator(db: None) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("operator"))
    return client


def facts_of(run: Run) -> dict[str, facts.Fact]:
    run.refresh_from_db()
    return {fact.label: fact for fact in facts.facts(run, list(run.attempts.order_by("number")))}


def under_way(agent: Agent | None = None, **changes: object) -> Run:
    """A run that is being worked on, in its first attempt."""
    run = submit(agent or make_agent())
    Attempt.objects.create(run=run)
    now = clock.now()
    fields = {"status": Status.PROCESSING, "has_slot": True, "started_at": now, **changes}
    Run.objects.filter(pk=run.pk).update(**fields)
    run.refresh_from_db()
    return run


def said(run: Run, prompt: str, *, attempt: Attempt) -> None:
    part = {"type": "text", "text": prompt}
    Message.objects.create(attempt=attempt, position=0, body={"role": "user", "parts": [part]})


def test_what_a_run_has_spent_is_told_beside_what_it_may_spend() -> None:
    agent = make_agent(limits={"usd": "2.5", "output_bytes": 1000, "idle_seconds": 300})
    told = facts_of(under_way(agent, cost=Decimal("0.0123"), output_bytes=1234, idle_seconds=90))
    assert told["Cost"].text == "$0.0123 of $2.5000"
    assert told["Output"].text == "1,234 of 1,000 bytes"
    assert told["Idle limit"].text == "1 min 30 s"


def test_a_cost_is_told_also_without_a_budget_and_none_where_nothing_was_paid() -> None:
    agent = make_agent()
    assert facts_of(under_way(agent, cost=Decimal("0.5")))["Cost"].text == "$0.5000"
    assert "Cost" not in facts_of(under_way(agent))


def test_the_time_left_is_that_of_the_runs_own_limit() -> None:
    run = under_way(wall_seconds=120, deadline_at=clock.now() + timedelta(seconds=60))
    told = facts_of(run)["Time left"]
    assert (told.note, told.at, told.counts) == ("of 2 min", run.deadline_at, "left")


def test_each_earlier_attempt_is_told_with_its_error_and_leads_to_its_transcript() -> None:
    run = under_way(make_agent(attempts={"most": 3}))
    error = {"code": "SANDBOX_LOST", "message": "its host is gone"}
    Attempt.objects.filter(run=run).update(error=error, ended_at=clock.now())
    Attempt.objects.create(run=run, number=2)
    told = facts_of(run)
    assert (told["Attempt"].text, told["Attempt"].url) == ("2 of 3", "?attempt=2")
    first = told["Attempt 1"]
    assert (first.text, first.note, first.url) == ("SANDBOX_LOST", "its host is gone", "?attempt=1")


def test_a_run_that_is_never_retried_has_one_attempt_of_one() -> None:
    assert facts_of(under_way(make_agent(retry="never")))["Attempt"] == facts.Fact("Attempt", "1 of 1")


def test_the_runs_page_shows_the_transcript_of_the_attempt_that_is_asked_for(operator: Client) -> None:
    run = under_way()
    first = Attempt.objects.get(run=run)
    said(run, "the first", attempt=first)
    said(run, "the second", attempt=Attempt.objects.create(run=run, number=2))
    page = f"/admin/runs/run/{run.pk}"
    for query, text in (("?attempt=1", "the first"), ("?attempt=2", "the second"), ("", "the second")):
        parts = operator.get(f"{page}/message/0/{query}").json()["parts"]
        assert [part["text"] for part in parts] == [text], query
    chosen = operator.get(f"{page}/change/?attempt=1").content.decode()
    assert 'data-attempt="1"' in chosen
    assert "All attempts" in chosen
    assert 'data-attempt=""' in operator.get(f"{page}/change/").content.decode()


@pytest.mark.parametrize("query", ["0", "-1", "x", "1e3", "\uff19", "1" * 9])
def test_an_attempt_that_is_no_number_is_none(operator: Client, query: str) -> None:
    run = under_way()
    said(run, "the first", attempt=Attempt.objects.get(run=run))
    html = operator.get(f"/admin/runs/run/{run.pk}/change/", {"attempt": query}).content.decode()
    assert 'data-attempt=""' in html
    assert operator.get(f"/admin/runs/run/{run.pk}/message/0/", {"attempt": query}).json()["parts"]


def test_a_rerun_and_a_resumption_lead_to_the_run_before_and_back() -> None:
    agent = make_agent(max_reruns=4)
    first, second = submit(agent), submit(agent)
    over = {"status": Status.FINISHED, "finished_at": clock.now()}
    Run.objects.filter(pk=first.pk).update(**over)
    Run.objects.filter(pk=second.pk).update(rerun_of=first, rerun_number=2, resumed_from=first, caused_by=first.pk)
    told = facts_of(second)
    assert (told["Rerun of"].text, told["Rerun of"].note) == (first.pk, "rerun 2 of 4 at most")
    assert told["Rerun of"].url == told["Resumed from"].url == f"/admin/runs/run/{first.pk}/change/"
    assert "Cause" not in told
    before = facts_of(first)
    assert before["Followed by"].text == before["Resumed by"].text == second.pk


def test_keys_are_told_and_whoever_holds_one_up() -> None:
    agent = make_agent(scale=5)
    first = under_way(agent, claim_key="issues/7")
    second = submit(agent, claim_key="issues/7", session_key="chat")
    told = facts_of(second)
    assert (told["Claim key"].text, told["Session key"].text) == ("issues/7", "chat")
    assert facts.standing(second) == f"in line: {first.pk} of the same claim key is not over"
    Run.objects.filter(pk=first.pk).update(claim_key="", session_key="chat")
    assert facts.standing(second) == f"in line: {first.pk} of the same session is not over"


def test_a_pending_run_of_a_broken_agent_says_when_one_is_tried() -> None:
    agent = make_agent(breaker={"failures": 1})
    run = submit(agent)
    breaker.failed(agent.pk, "TIMEOUT")
    run = Run.objects.get(pk=run.pk)
    assert re.fullmatch(r"in line: 1 failed in a row, one is tried at .* UTC", facts.standing(run))


def test_a_commands_exit_code_is_told() -> None:
    run = under_way()
    assert "Exit code" not in facts_of(run)
    Run.objects.filter(pk=run.pk).update(exit_code=0)
    assert facts_of(run)["Exit code"].text == "0"
