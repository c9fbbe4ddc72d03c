"""The form of an agent that is made in the admin: what it says is stored, what it leaves empty stays."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from agents.models import Agent
from agents.spec import Attempts, Limits, ScheduleSpec
from tests.making import make_agent

pytestmark = pytest.mark.django_db(transaction=True)

KEPT: dict[str, Any] = {
    "retry": "always",
    "attempts": {"most": 4},
    "coalesce": {"key": "issues/{number}", "mode": "skip"},
}
SAID = {
    "description": "one line", "instructions": "Do it.", "provider": "anthropic", "model": "any", "schedule": "",
    "timezone": "UTC", "scale": "2", "turns": "7", "wall_seconds": "60", "tokens": "500",
}  # fmt: skip


@pytest.fixture
def operator(db: None) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("operator"))
    return client


def saved(client: Client, agent: Agent, **fields: str) -> Agent:
    answer = client.post(f"/admin/agents/agent/{agent.pk}/edit/", {**SAID, **fields})
    assert answer.status_code == 302, answer.content
    agent.refresh_from_db()
    return agent


def test_limits_and_the_length_of_the_line_are_stored(operator: Client) -> None:
    agent = saved(operator, make_agent(), idle_seconds="30", usd="2.50", max_work_queue="3")
    assert agent.spec.limits == Limits(turns=7, wall_seconds=60, idle_seconds=30, tokens=500, usd=Decimal("2.50"))
    assert (agent.spec.max_work_queue, agent.queue_size) == (3, 3)


def test_what_the_form_does_not_say_stays_as_it_is(operator: Client) -> None:
    before = make_agent(limits={"idle_seconds": 30, "usd": "2.5", "output_bytes": 9}, max_work_queue=5, **KEPT)
    spec = saved(operator, before).spec
    assert (spec.limits.idle_seconds, spec.limits.usd, spec.limits.output_bytes) == (30, Decimal("2.5"), 9)
    assert (spec.max_work_queue, spec.retry, spec.attempts) == (5, "always", Attempts(most=4))
    assert (spec.coalesce.key, spec.coalesce.mode) == ("issues/{number}", "skip")


def test_a_budget_below_nothing_is_refused(operator: Client) -> None:
    agent = make_agent()
    answer = operator.post(f"/admin/agents/agent/{agent.pk}/edit/", {**SAID, "usd": "-1"})
    assert answer.status_code == 200
    assert "greater than or equal to 0" in answer.content.decode()
    agent.refresh_from_db()
    assert agent.spec.limits == Limits()


def test_schedules_are_lines_and_come_back_as_they_were(operator: Client) -> None:
    lines = "0 9 * * mon-fri\r\n@every 15m | missed all | within 2h\r\n0 9 * * * | zone Asia/Kolkata | jitter 5m\r\n"
    agent = saved(operator, make_agent(), schedule=lines, timezone="Europe/Berlin")
    assert agent.spec.schedules == (
        ScheduleSpec(cron="0 9 * * mon-fri"),
        ScheduleSpec(cron="@every 15m", missed="all", missed_seconds=7200),
        ScheduleSpec(cron="0 9 * * *", timezone="Asia/Kolkata", jitter_seconds=300),
    )
    zones = agent.schedules.values_list("timezone", flat=True)
    assert list(zones) == ["Europe/Berlin", "Europe/Berlin", "Asia/Kolkata"]
    form = operator.get(f"/admin/agents/agent/{agent.pk}/edit/").context["form"]
    saved(operator, agent, schedule=form.initial["schedule"], timezone="Europe/Berlin")
    assert agent.versions.count() == 2, "nothing was changed by looking"


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("0 9 * * * | zone Mars/Phobos", "there is no time zone"),
        ("0 9 * * * | every day", "says nothing of a schedule"),
        ("0 9 * * * | jitter soon", "is no length of time"),
        ("0 9 * * * | jitter 3d", "is too long"),
        ("*/5 * * * * | jitter 5m", "jitter must be shorter"),
        ("@every 1s", "out of bounds"),
        ("0 9 * * *\n0 9 * * * | zone UTC", "stands here a second time"),
    ],
)
def test_a_line_that_is_no_schedule_is_told_so(operator: Client, line: str, fault: str) -> None:
    agent = make_agent()
    answer = operator.post(f"/admin/agents/agent/{agent.pk}/edit/", {**SAID, "schedule": line})
    assert fault in answer.content.decode()
    assert not agent.schedules.exists()
