"""What could not start a run is kept, seen, and replayed once: over REST and in the admin."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from agents import clock
from agents.models import Agent, ApiToken, Workspace
from runs import breaker, intake, line, queue
from runs.lifecycle import Cause
from runs.models import DeadLetter, Run, TriggerKind
from tests.making import make_agent, make_workspace, submit

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgresql]


class Api:
    """A caller with a token."""

    def __init__(self, workspace: Workspace | None = None) -> None:
        _, self.token = ApiToken.issue(workspace or make_workspace(), "test")

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        answer = self.answer(method, path, body, **headers)
        return answer.status_code, json.loads(answer.content)

    def answer(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        return Client().generic(
            method,
            f"/api/v1/{path}",
            data="" if body is None else json.dumps(body),
            content_type="application/json",
            headers={"Authorization": f"Bearer {self.token}", **headers},
        )


@pytest.fixture
def api(db: None) -> Api:
    return Api()


@pytest.fixture
def operator(db: None) -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("operator"))
    return client


def code(answer: tuple[int, Any]) -> tuple[int, str]:
    return answer[0], answer[1]["error"]["code"]


def overflow(agent: Agent, number: int = 1) -> DeadLetter:
    """A webhook that the agent's line, of no length and with its slots to be free, has no room for."""
    Agent.objects.filter(pk=agent.pk).update(queue_size=0)
    agent.refresh_from_db()
    while line.length(agent) < agent.scale:
        submit(agent)
    cause = Cause(TriggerKind.WEBHOOK, {"event": "issues", "number": number}, "dlv_1")
    letter = intake.deliver(agent, cause).dead_letter
    assert letter is not None
    return letter


def make_room(agent: Agent) -> None:
    Agent.objects.filter(pk=agent.pk).update(queue_size=100)


# --- over REST --------------------------------------------------------------------------------------------------


def test_a_dead_letter_is_told_with_what_it_was_and_why(api: Api) -> None:
    letter = overflow(make_agent())
    status, body = api("GET", f"dead-letters/{letter.pk}")
    told = body["dead_letter"]
    assert status == 200
    assert (told["agent_name"], told["code"], told["trigger"], told["caused_by"]) == (
        "dev", "QUEUE_FULL", "webhook", "dlv_1",
    )  # fmt: skip
    assert told["trigger_context"] == {"event": "issues", "number": 1}
    assert "dev" in told["reason"]
    assert (told["replayed_at"], told["task_id"]) == (None, None)


def test_replaying_starts_what_the_event_would_have_started(api: Api) -> None:
    agent = make_agent()
    letter = overflow(agent)
    make_room(agent)
    status, body = api("POST", f"dead-letters/{letter.pk}/replay")
    run = Run.objects.get(pk=body["taskId"])
    assert (status, body["status"]) == (202, "pending")
    assert (run.agent, run.trigger, run.caused_by) == (agent, "webhook", "dlv_1")
    assert run.trigger_context["number"] == 1
    _, told = api("GET", f"dead-letters/{letter.pk}")
    assert told["dead_letter"]["task_id"] == run.pk
    assert told["dead_letter"]["replayed_at"] is not None


def test_a_second_replay_starts_nothing_and_names_the_run(api: Api) -> None:
    agent = make_agent()
    letter = overflow(agent)
    make_room(agent)
    _, first = api("POST", f"dead-letters/{letter.pk}/replay")
    runs = Run.objects.count()
    answer = api("POST", f"dead-letters/{letter.pk}/replay")
    assert code(answer) == (409, "ALREADY_REPLAYED")
    assert answer[1]["error"]["details"] == {"taskId": first["taskId"]}
    assert Run.objects.count() == runs


def test_a_letter_whose_run_was_deleted_is_not_replayed_again(api: Api) -> None:
    agent = make_agent()
    letter = overflow(agent)
    make_room(agent)
    _, first = api("POST", f"dead-letters/{letter.pk}/replay")
    assert api("DELETE", f"tasks/{first['taskId']}?force=true")[0] == 200
    answer = api("POST", f"dead-letters/{letter.pk}/replay")
    assert code(answer) == (409, "ALREADY_REPLAYED")
    assert answer[1]["error"]["details"] == {"taskId": None}


def test_a_line_that_is_still_full_keeps_the_letter(api: Api) -> None:
    letter = overflow(make_agent())
    answer = api.answer("POST", f"dead-letters/{letter.pk}/replay")
    assert code((answer.status_code, answer.json())) == (429, "QUEUE_FULL")
    assert answer.headers["Retry-After"] == "5"
    letter.refresh_from_db()
    assert (letter.replayed_at, letter.run) == (None, None)


def test_an_agent_that_takes_nothing_keeps_the_letter(api: Api) -> None:
    agent = make_agent()
    letter = overflow(agent)
    queue.pause(agent)
    assert code(api("POST", f"dead-letters/{letter.pk}/replay")) == (409, "AGENT_UNAVAILABLE")
    letter.refresh_from_db()
    assert letter.replayed_at is None


def test_letters_are_listed_newest_first_and_page_by_page(api: Api) -> None:
    agent, other = make_agent(), make_agent("other")
    letters = [overflow(agent, number).pk for number in range(3)]
    elsewhere = overflow(other).pk
    _, first = api("GET", "dead-letters?agentName=dev&limit=2")
    assert [letter["id"] for letter in first["dead_letters"]] == [letters[2], letters[1]]
    _, second = api("GET", f"dead-letters?agentName=dev&limit=2&cursor={first['next_cursor']}")
    assert ([letter["id"] for letter in second["dead_letters"]], second["next_cursor"]) == ([letters[0]], None)
    assert elsewhere in {letter["id"] for letter in api("GET", "dead-letters")[1]["dead_letters"]}


def test_letters_are_found_by_whether_they_were_replayed(api: Api) -> None:
    agent = make_agent()
    kept, replayed = overflow(agent, 1), overflow(agent, 2)
    make_room(agent)
    queue.replay(DeadLetter.objects.get(pk=replayed.pk))
    for value, letter in (("true", replayed), ("false", kept)):
        _, body = api("GET", f"dead-letters?replayed={value}")
        assert [found["id"] for found in body["dead_letters"]] == [letter.pk]
    assert code(api("GET", "dead-letters?replayed=maybe")) == (400, "VALIDATION_ERROR")


def test_another_workspaces_letters_do_not_exist() -> None:
    agent = make_agent()
    letter = overflow(agent)
    make_room(agent)
    stranger = Api(Workspace.objects.create(name="elsewhere"))
    assert stranger("GET", "dead-letters") == (200, {"dead_letters": [], "next_cursor": None})
    assert code(stranger("GET", f"dead-letters/{letter.pk}")) == (404, "DEAD_LETTER_NOT_FOUND")
    assert code(stranger("POST", f"dead-letters/{letter.pk}/replay")) == (404, "DEAD_LETTER_NOT_FOUND")
    letter.refresh_from_db()
    assert letter.replayed_at is None


def test_a_list_of_letters_costs_the_same_however_many_there_are(api: Api) -> None:
    def cost() -> int:
        with CaptureQueriesContext(connection) as captured:
            assert api("GET", "dead-letters?limit=200")[0] == 200
        return len(captured.captured_queries)

    agent = make_agent()
    overflow(agent)
    cost()
    few = cost()
    for number in range(20):
        overflow(agent, number)
    assert cost() == few


# --- a task that finds no place ---------------------------------------------------------------------------------


def test_a_full_line_is_told_to_whoever_asks_and_keeps_no_letter(api: Api) -> None:
    agent = make_agent()
    overflow(agent)
    runs, letters = Run.objects.count(), DeadLetter.objects.count()
    answer = api.answer("POST", "agents/dev/task", {"input": "x"})
    assert code((answer.status_code, answer.json())) == (429, "QUEUE_FULL")
    assert answer.headers["Retry-After"] == "5"
    assert (Run.objects.count(), DeadLetter.objects.count()) == (runs, letters)


def test_a_claim_key_that_is_busy_names_the_run_that_has_it(api: Api) -> None:
    make_agent(coalesce={"key": "issues/{number}", "mode": "skip"})
    status, first = api("POST", "agents/dev/task", {"input": "x", "claimKey": "issues/7"})
    assert status == 202
    answer = api("POST", "agents/dev/task", {"input": "y", "claimKey": "issues/7"})
    assert code(answer) == (409, "CLAIM_KEY_BUSY")
    assert answer[1]["error"]["details"] == {"taskId": first["taskId"]}
    assert Run.objects.count() == 1


# --- in the admin -----------------------------------------------------------------------------------------------


def of_letter(letter: DeadLetter, path: str) -> str:
    return f"/admin/runs/deadletter/{letter.pk}/{path}"


def viewer() -> Client:
    """Somebody who may look at dead letters and no more."""
    user = User.objects.create_user("viewer", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_deadletter"))
    client = Client()
    client.force_login(user)
    return client


def test_an_operator_replays_a_letter_and_comes_to_its_run(operator: Client) -> None:
    agent = make_agent()
    letter = overflow(agent)
    make_room(agent)
    answer = operator.post(of_letter(letter, "replay/"))
    letter.refresh_from_db()
    assert letter.run is not None
    assert (answer.status_code, answer.headers["Location"]) == (302, f"/admin/runs/run/{letter.run.pk}/change/")


def test_asking_for_the_page_of_a_replay_replays_nothing(operator: Client) -> None:
    letter = overflow(make_agent())
    assert operator.get(of_letter(letter, "replay/")).status_code == 200
    letter.refresh_from_db()
    assert letter.replayed_at is None


def test_whoever_may_only_look_replays_nothing() -> None:
    agent = make_agent()
    letter = overflow(agent)
    make_room(agent)
    client = viewer()
    assert client.get(of_letter(letter, "change/")).status_code == 200
    assert client.post(of_letter(letter, "replay/")).status_code == 403
    many = {"action": "replay_selected", "_selected_action": [letter.pk]}
    client.post("/admin/runs/deadletter/", many)
    letter.refresh_from_db()
    assert letter.replayed_at is None


def test_many_letters_are_replayed_in_their_order_as_far_as_there_is_room(operator: Client) -> None:
    agent = make_agent()
    letters = [overflow(agent, number) for number in range(3)]
    Agent.objects.filter(pk=agent.pk).update(queue_size=2)
    many = {"action": "replay_selected", "_selected_action": [letter.pk for letter in letters]}
    answer = operator.post("/admin/runs/deadletter/", many, follow=True)
    replayed = Run.objects.filter(trigger="webhook").order_by("pk")
    assert [run.trigger_context["number"] for run in replayed] == [0, 1]
    assert "Replayed 2; 1 not" in " ".join(map(str, answer.context["messages"]))


def test_letters_are_filtered_by_agent_code_and_whether_they_were_replayed(operator: Client) -> None:
    kept, elsewhere = overflow(make_agent()), overflow(make_agent("other"))
    for query, found in (
        (f"agent__id__exact={kept.agent_id}", {kept.pk}),
        ("replayed=no", {kept.pk, elsewhere.pk}),
        ("replayed=yes", set()),
        ("code=QUEUE_FULL", {kept.pk, elsewhere.pk}),
    ):
        html = operator.get(f"/admin/runs/deadletter/?{query}").content.decode()
        assert {pk for pk in (kept.pk, elsewhere.pk) if pk in html} == found, query


def test_the_front_page_tells_of_fresh_letters_until_they_are_replayed(operator: Client) -> None:
    agent = make_agent()
    letter = overflow(agent)
    title = "Dead letters of the last day"
    assert title in operator.get("/admin/").content.decode()
    make_room(agent)
    queue.replay(DeadLetter.objects.get(pk=letter.pk))
    assert title not in operator.get("/admin/").content.decode()


def test_an_agents_page_counts_its_letters_and_leads_to_them(operator: Client) -> None:
    agent = make_agent()
    overflow(agent)
    html = operator.get(f"/admin/agents/agent/{agent.pk}/change/").content.decode()
    assert f"/admin/runs/deadletter/?replayed=no&amp;agent__id__exact={agent.pk}" in html
    assert "1 dead letter<" in html


# --- the breaker, over REST and on the agent's page -------------------------------------------------------------


def broken_agent() -> Agent:
    agent = make_agent(breaker={"failures": 2})
    for _ in range(2):
        breaker.failed(agent.pk, "TIMEOUT")
    agent.refresh_from_db()
    assert agent.broken
    return agent


def test_a_broken_agent_says_so_and_a_reset_mends_it(api: Api) -> None:
    agent = broken_agent()
    _, body = api("GET", "agents/dev")
    told = body["agent"]["breaker"]
    assert told["failures_in_a_row"] == 2
    assert told["broken_at"] is not None
    assert told["probe_at"] > told["broken_at"]
    status, body = api("POST", "agents/dev/reset")
    assert (status, body["agent"]["breaker"]) == (
        200, {"failures_in_a_row": 0, "broken_at": None, "probe_at": None},
    )  # fmt: skip
    agent.refresh_from_db()
    assert not agent.broken
    assert code(api("POST", "agents/nobody/reset")) == (404, "AGENT_NOT_FOUND")


def test_an_agents_record_tells_its_line_and_its_keys(api: Api) -> None:
    make_agent(max_work_queue=7, coalesce={"key": "issues/{number}", "mode": "replace"})
    make_agent("plain")
    _, body = api("GET", "agents")
    told = {agent["name"]: (agent["queue_size"], agent["claim_key"], agent["coalesce"]) for agent in body["agents"]}
    assert told == {"dev": (7, "issues/{number}", "replace"), "plain": (100, None, None)}


def test_a_broken_agents_page_says_so_and_one_click_resets_it(operator: Client) -> None:
    agent = broken_agent()
    page, reset = (f"/admin/agents/agent/{agent.pk}/{path}/" for path in ("change", "reset"))
    html = operator.get(page).content.decode()
    assert "Holds its line since" in html
    assert "breaker.opened" in html
    assert f'action="{reset}"' in html
    assert operator.post(reset, follow=True).status_code == 200
    agent.refresh_from_db()
    assert not agent.broken
    assert "Holds its line since" not in operator.get(page).content.decode()


def test_whoever_may_only_look_at_an_agent_resets_nothing() -> None:
    agent = broken_agent()
    user = User.objects.create_user("viewer", is_staff=True)
    user.user_permissions.add(Permission.objects.get(codename="view_agent"))
    client = Client()
    client.force_login(user)
    assert client.post(f"/admin/agents/agent/{agent.pk}/reset/").status_code == 403
    agent.refresh_from_db()
    assert agent.broken


def test_letters_older_than_a_day_are_no_alarm_on_the_front_page(
    operator: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflow(make_agent())
    later = clock.now() + timedelta(days=2)
    monkeypatch.setattr(clock, "now", lambda: later)
    operator.force_login(User.objects.get(username="operator"))
    assert "Dead letters of the last day" not in operator.get("/admin/").content.decode()
