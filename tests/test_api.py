"""The REST contract: paths, fields, codes (spec/airstore-machina-veil.md 3, DESIGN 4)."""

from __future__ import annotations

import asyncio
import json
import threading
from typing import Any

import pytest
from django.db import connection
from django.test import Client

from agents import clock
from agents.models import ApiToken, Priority, Workspace
from runs import events, queue
from runs.api import stream as api_stream
from runs.models import Attempt, Event, Message, Run, ToolCall
from tests.conftest import DrivenWorker
from tests.making import bash, make_agent, make_workspace, submit

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgresql]


class Api:
    """A caller with a token."""

    def __init__(self, workspace: Workspace | None = None) -> None:
        _, self.token = ApiToken.issue(workspace or make_workspace(), "test")

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        answer = Client().generic(
            method,
            f"/api/v1/{path}",
            data="" if body is None else body if isinstance(body, str) else json.dumps(body),
            content_type=headers.pop("content_type", "application/json"),
            headers={"Authorization": f"Bearer {self.token}", **headers},
        )
        return answer.status_code, json.loads(answer.content)


@pytest.fixture
def api(db: None) -> Api:
    return Api()


def code(answer: tuple[int, Any]) -> tuple[int, str]:
    status, body = answer
    assert set(body) == {"error"}
    assert body["error"]["message"]
    return status, body["error"]["code"]


ASK: dict[str, Any] = {
    "turns": [{"tools": [{"name": "ask", "arguments": {"question": "Which one?"}}]}, {"text": "thanks"}]
}


# --- who may ask ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("header", ["", "Bearer", "Bearer ", "Bearer af_nobody", "Basic abc", "Bearer ü"])
@pytest.mark.parametrize("path", ["tasks", "agents", "tasks/run_x/cancel"])
def test_without_a_known_token_nothing_is_told(path: str, header: str) -> None:
    answer = Client().get(f"/api/v1/{path}", headers={"Authorization": header} if header else {})
    assert code((answer.status_code, answer.json())) == (401, "UNAUTHORIZED")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_revoked_token_is_unknown(api: Api) -> None:
    ApiToken.objects.update(revoked_at=clock.now())
    assert code(api("GET", "tasks")) == (401, "UNAUTHORIZED")


def test_only_the_hash_of_a_token_is_stored(api: Api) -> None:
    row = ApiToken.objects.values().get()
    assert api.token not in json.dumps(row, default=str)


def test_another_workspaces_runs_and_agents_do_not_exist(api: Api) -> None:
    run = submit(make_agent())
    stranger = Api(Workspace.objects.create(name="other"))
    assert stranger("GET", "tasks") == (200, {"tasks": [], "next_cursor": None})
    assert code(stranger("GET", f"tasks/{run.pk}")) == (404, "TASK_NOT_FOUND")
    assert code(stranger("DELETE", f"tasks/{run.pk}?force=true")) == (404, "TASK_NOT_FOUND")
    assert code(stranger("POST", f"tasks/{run.pk}/cancel")) == (404, "TASK_NOT_FOUND")
    assert code(stranger("POST", "agents/dev/task", {"input": "x"})) == (404, "AGENT_NOT_FOUND")


# --- create -----------------------------------------------------------------------------------------------------


def test_a_task_is_accepted_at_once(api: Api) -> None:
    agent = make_agent()
    asked = {
        "input": "Read package.json",
        "priority": "high",
        "tags": ["audit"],
        "maxIterations": 3,
        "maxDurationSeconds": 60,
        "tokenBudget": 5000,
    }
    status, body = api("POST", "agents/dev/task", asked)
    run = Run.objects.get()
    assert (status, body) == (202, {"taskId": run.pk, "status": "pending"})
    assert (run.agent, run.trigger, run.input, run.tags) == (agent, "api", "Read package.json", ["audit"])
    assert (run.max_turns, run.wall_seconds, run.token_budget) == (3, 60, 5000)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"input": ""},
        {"input": None},
        {"input": 5},
        {"input": "x", "tags": [5]},
        {"input": 5, "priority": "urgent"},
        {"input": "x", "priority": "urgent"},
        {"input": "x", "tags": "audit"},
        {"input": "x", "maxIterations": -1},
        {"input": "x", "maxIterations": "many"},
        {"input": "x", "tokenBudget": 10**12},
        {"input": "x", "unknownField": 1},
        [],
        "text",
        "{broken",
        "[" * 5000,
    ],
)
def test_a_body_that_does_not_fit_is_refused_with_a_sentence(api: Api, body: Any) -> None:
    make_agent()
    assert code(api("POST", "agents/dev/task", body)) == (400, "VALIDATION_ERROR")
    assert not Run.objects.exists()


def test_an_unknown_field_is_named_with_those_there_are(api: Api) -> None:
    make_agent()
    _, body = api("POST", "agents/dev/task", {"input": "x", "maxIteration": 1})
    assert "maxIteration" in body["error"]["message"]
    assert "maxIterations" in body["error"]["message"]


def test_another_content_type_is_refused(api: Api) -> None:
    make_agent()
    answer = api("POST", "agents/dev/task", "input=x", content_type="application/x-www-form-urlencoded")
    assert code(answer) == (415, "UNSUPPORTED_MEDIA_TYPE")


def test_an_unknown_agent_is_named(api: Api) -> None:
    assert code(api("POST", "agents/nobody/task", {"input": "x"})) == (404, "AGENT_NOT_FOUND")


def test_an_agent_may_decline_tasks_and_still_be_run_by_hand(api: Api) -> None:
    make_agent(task_enabled=False)
    assert code(api("POST", "agents/dev/task", {"input": "x"})) == (400, "MODE_NOT_SUPPORTED")
    assert api("POST", "agents/dev/run", {})[0] == 202
    assert Run.objects.get().trigger == "manual"


def test_a_paused_agent_says_so(api: Api) -> None:
    agent = make_agent()
    queue.pause(agent)
    assert code(api("POST", "agents/dev/task", {"input": "x"})) == (409, "AGENT_UNAVAILABLE")


@pytest.mark.parametrize("text", ["a\\u0000b", "\\ud800"])
def test_text_that_no_database_holds_is_refused(api: Api, text: str) -> None:
    make_agent()
    assert code(api("POST", "agents/dev/task", f'{{"input": "{text}"}}')) == (400, "VALIDATION_ERROR")


def test_an_idempotency_key_starts_one_task(api: Api) -> None:
    make_agent()
    first = api("POST", "agents/dev/task", {"input": "x"}, **{"Idempotency-Key": "k1"})
    second = api("POST", "agents/dev/task", {"input": "x"}, **{"Idempotency-Key": "k1"})
    assert (first[0], second[0]) == (202, 200)
    assert first[1]["taskId"] == second[1]["taskId"]
    assert Run.objects.count() == 1
    other = api("POST", "agents/dev/task", {"input": "y"}, **{"Idempotency-Key": "k1"})
    assert code(other) == (409, "IDEMPOTENCY_KEY_REUSED")


def test_parallel_requests_with_one_key_start_one_task(api: Api) -> None:
    make_agent()
    answers: list[tuple[int, Any]] = []

    def ask() -> None:
        try:
            answers.append(api("POST", "agents/dev/task", {"input": "x"}, **{"Idempotency-Key": "k"}))
        finally:
            connection.close()

    threads = [threading.Thread(target=ask) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(status for status, _ in answers) == [200] * 9 + [202]
    assert {body["taskId"] for _, body in answers} == {Run.objects.get().pk}


# --- look -------------------------------------------------------------------------------------------------------


def test_a_task_is_told_whole(api: Api, worker: DrivenWorker) -> None:
    agent = make_agent(turns=[{"text": "look", "tools": [bash("echo hi")]}, {"text": "all good"}])
    run = worker.drive(submit(agent, input="go", tags=["t"]))
    status, body = api("GET", f"tasks/{run.pk}")
    task = body["task"]
    assert status == 200
    told = {name: task[name] for name in ("agent_name", "status", "priority", "input", "output", "error", "tags")}
    assert told == {
        "agent_name": "dev",
        "status": "finished",
        "priority": "normal",
        "input": "go",
        "output": "all good",
        "error": None,
        "tags": ["t"],
    }
    assert (task["iterations"], task["parent_task_id"], task["session_id"]) == (2, None, None)
    assert task["token_input"] > 0
    assert task["token_output"] > 0
    assert task["eventCount"] == Event.objects.filter(run=run).count()
    assert task["created_at"] <= task["started_at"] <= task["finished_at"]
    assert task["created_at"].endswith("Z")


def test_a_failed_task_says_why_in_a_code_and_a_sentence(api: Api, worker: DrivenWorker) -> None:
    run = worker.drive(submit(make_agent(turns=[])))
    error = api("GET", f"tasks/{run.pk}")[1]["task"]["error"]
    assert error["code"] == "SCRIPT_ENDED"
    assert error["iteration"] == 0
    assert "script.yaml" in error["message"]


def test_tasks_come_newest_first_page_by_page(api: Api) -> None:
    first, second = make_agent("a", scale=9), make_agent("b")
    made = [submit(first).pk for _ in range(25)] + [submit(second).pk]
    status, page = api("GET", "tasks?agentName=a")
    assert status == 200
    assert [task["id"] for task in page["tasks"]] == sorted(made[:25], reverse=True)[:20]
    _, rest = api("GET", f"tasks?agentName=a&cursor={page['next_cursor']}")
    assert [task["id"] for task in rest["tasks"]] == sorted(made[:25], reverse=True)[20:]
    assert rest["next_cursor"] is None
    assert [task["id"] for task in api("GET", "tasks?agentName=b")[1]["tasks"]] == [made[25]]


def test_tasks_are_chosen_by_status_and_priority(api: Api) -> None:
    agent = make_agent()
    kept, canceled = submit(agent, priority=Priority.HIGH), submit(agent)
    queue.cancel(canceled)
    for query, wanted in {
        "status=pending": kept,
        "status=canceled": canceled,
        "status=cancelled": canceled,
        "priority=high": kept,
    }.items():
        assert [task["id"] for task in api("GET", f"tasks?{query}")[1]["tasks"]] == [wanted.pk]
    assert code(api("GET", "tasks?status=done")) == (400, "VALIDATION_ERROR")


@pytest.mark.parametrize("query", ["limit=0", "limit=201", "limit=-1", "limit=ten", "limit=²"])
def test_a_limit_that_makes_no_sense_is_refused(api: Api, query: str) -> None:
    assert code(api("GET", f"tasks?{query}")) == (400, "VALIDATION_ERROR")


def test_a_listing_costs_the_same_for_one_task_and_for_many(api: Api, django_assert_max_num_queries: Any) -> None:
    agent = make_agent(scale=99)
    for _ in range(60):
        submit(agent)
    with django_assert_max_num_queries(4):
        api("GET", "tasks?limit=60")


def test_events_are_read_on_from_a_number(api: Api, worker: DrivenWorker) -> None:
    run = worker.drive(submit(make_agent(turns=[{"text": "x", "tools": [bash("echo hi")]}, {"text": "done"}])))
    _, whole = api("GET", f"tasks/{run.pk}/events")
    assert whole["taskId"] == run.pk
    assert [event["id"] for event in whole["events"]] == list(range(1, len(whole["events"]) + 1))
    assert set(whole["events"][0]) == {"id", "type", "data", "created_at"}
    _, page = api("GET", f"tasks/{run.pk}/events?since=3&limit=2")
    assert page["events"] == whole["events"][3:5]
    tool_end = next(event["data"] for event in whole["events"] if event["type"] == "tool.end")
    assert {"toolName", "durationMs", "success", "outputPreview"} <= set(tool_end)
    assert code(api("GET", f"tasks/{run.pk}/events?since=-1")) == (400, "VALIDATION_ERROR")


def test_the_context_is_null_before_the_first_model_call_and_the_transcript_after(
    api: Api, worker: DrivenWorker
) -> None:
    run = submit(make_agent(turns=[{"tools": [bash("echo hi")]}, {"text": "done"}]))
    assert api("GET", f"tasks/{run.pk}/context") == (200, {"taskId": run.pk, "context": None})
    worker.drive(run)
    context = api("GET", f"tasks/{run.pk}/context")[1]["context"]
    assert [message["role"] for message in context["messages"]] == ["system", "user", "assistant", "tool", "assistant"]
    assert context["messages"][2]["content"] is None
    assert context["messages"][2]["tool_calls"][0]["name"] == "bash"
    assert context["messages"][3]["content"] == "hi\n"
    assert context["iteration"] == 2
    assert "bash" in context["tools"]


@pytest.mark.parametrize("rest", ["", "/events", "/context"])
def test_an_unknown_task_is_named(api: Api, rest: str) -> None:
    assert code(api("GET", f"tasks/run_nobody{rest}")) == (404, "TASK_NOT_FOUND")


# --- answer, stop, delete ---------------------------------------------------------------------------------------


def test_a_waiting_task_holds_nothing_and_goes_on_when_answered(api: Api, worker: DrivenWorker) -> None:
    run = worker.drive(submit(make_agent(**ASK)))
    task = api("GET", f"tasks/{run.pk}")[1]["task"]
    assert (task["status"], task["wait_reason"], task["question"]) == ("waiting", "input", "Which one?")
    assert (run.has_slot, run.lease_owner, worker.free) == (False, "", 8)
    answer = api("POST", f"tasks/{run.pk}/respond", {"message": "the first"})
    assert answer == (200, {"taskId": run.pk, "status": "processing"})
    run = worker.drive(run)
    assert (run.status, run.output) == ("finished", "thanks")
    told = ToolCall.objects.get()
    assert (told.state, told.result) == ("done", "the first")


def test_a_response_to_a_task_that_does_not_wait_changes_nothing(api: Api, worker: DrivenWorker) -> None:
    run = submit(make_agent(**ASK))
    assert code(api("POST", f"tasks/{run.pk}/respond", {"message": "early"})) == (400, "TASK_NOT_WAITING")
    worker.drive(run)
    assert code(api("POST", f"tasks/{run.pk}/respond", {})) == (400, "VALIDATION_ERROR")
    assert api("POST", f"tasks/{run.pk}/respond", {"message": "one"})[0] == 200
    assert code(api("POST", f"tasks/{run.pk}/respond", {"message": "two"})) == (400, "TASK_NOT_WAITING")
    worker.drive(run)
    assert code(api("POST", f"tasks/{run.pk}/respond", {"message": "late"})) == (400, "TASK_NOT_WAITING")
    assert ToolCall.objects.get().result == "one"


@pytest.mark.parametrize("state", ["pending", "waiting", "woken"])
def test_a_task_nobody_works_on_is_canceled_at_once(api: Api, worker: DrivenWorker, state: str) -> None:
    run = submit(make_agent(**ASK))
    if state != "pending":
        worker.drive(run)
    if state == "woken":
        queue.respond(run, "x")
    assert api("POST", f"tasks/{run.pk}/cancel") == (200, {"taskId": run.pk, "status": "canceled"})
    run = worker.drive(run)
    assert run.status == "canceled"
    assert code(api("POST", f"tasks/{run.pk}/cancel")) == (400, "TASK_ALREADY_TERMINAL")


def test_an_active_task_is_deleted_only_by_force(api: Api, worker: DrivenWorker) -> None:
    run = worker.drive(submit(make_agent(**ASK)))
    assert code(api("DELETE", f"tasks/{run.pk}")) == (409, "TASK_ACTIVE")
    assert api("DELETE", f"tasks/{run.pk}?force=true") == (200, {"deleted": True, "taskId": run.pk})
    assert code(api("GET", f"tasks/{run.pk}")) == (404, "TASK_NOT_FOUND")


def test_a_deleted_task_takes_everything_with_it(api: Api, worker: DrivenWorker) -> None:
    run = worker.drive(submit(make_agent(turns=[{"tools": [bash("echo hi")]}, {"text": "done"}])))
    assert api("DELETE", f"tasks/{run.pk}")[0] == 200
    for model in (Run, Attempt, Message, ToolCall, Event):
        assert not model.objects.exists()


# --- agents -----------------------------------------------------------------------------------------------------


def test_agents_tell_what_they_do_and_what_comes_next(api: Api) -> None:
    agent = make_agent(schedule="*/5 * * * *", scale=2)
    submit(agent)
    record = api("GET", "agents")[1]["agents"][0]
    assert (record["name"], record["running"], record["pending"], record["paused"]) == ("dev", 0, 1, False)
    assert len(record["next_runs"]) == 5
    assert record["models"] == ["scripted:script.yaml"]
    assert api("POST", "agents/dev/pause")[1]["agent"]["paused"]
    assert api("GET", "agents/dev")[1]["agent"]["next_runs"] == []
    assert not api("POST", "agents/dev/resume")[1]["agent"]["paused"]


# --- stream -----------------------------------------------------------------------------------------------------


def sse(run: Run, after: int = 0) -> list[str]:
    async def gather() -> list[str]:
        return [piece async for piece in api_stream.sent(run.pk, after=after)]

    return asyncio.run(gather())


def test_the_stream_of_an_ended_task_replays_and_closes(worker: DrivenWorker) -> None:
    run = worker.drive(submit(make_agent(turns=[{"text": "done"}])))
    pieces = sse(run)
    stored = events.fetch(run.pk)
    assert [json.loads(piece.split("data: ")[1]) for piece in pieces[:-1]] == stored
    assert [piece.split("\n")[0] for piece in pieces[:-1]] == [f"id: {event['id']}" for event in stored]
    status = {"taskId": run.pk, "status": "finished", "output": "done", "error": None}
    assert pieces[-1] == f"event: status\ndata: {json.dumps(status)}\n\n"


def test_a_reader_who_comes_back_gets_only_what_is_new(worker: DrivenWorker) -> None:
    run = worker.drive(submit(make_agent(turns=[{"text": "done"}])))
    last = run.last_event
    assert [piece.split("\n")[0] for piece in sse(run, after=last - 1)] == [f"id: {last}", "event: status"]


def test_the_schema_is_served_and_names_every_path() -> None:
    answer = Client().get("/api/v1/schema/")
    assert answer.status_code == 200
    text = answer.content.decode()
    for path in ("/api/v1/agents/{name}/task", "/api/v1/tasks/{run_id}/respond", "/api/v1/projects/{name}"):
        assert path in text


def test_health_needs_no_token() -> None:
    assert Client().get("/healthz").json() == {"status": "ok"}


def test_only_the_homes_own_token_logs_a_person_in(api: Api) -> None:
    assert code(api("POST", "login-links")) == (403, "FORBIDDEN")
    ApiToken.objects.update(is_operators=True)
    status, body = api("POST", "login-links")
    assert status == 200
    assert body["path"].startswith("/login/")


def test_an_agent_says_what_it_does_wherever_it_is_shown(api: Api) -> None:
    submit(make_agent())
    shown = [
        api("GET", "agents")[1]["agents"][0],
        api("GET", "agents/dev")[1]["agent"],
        api("POST", "agents/dev/pause")[1]["agent"],
    ]
    assert [(agent["running"], agent["pending"]) for agent in shown] == [(0, 1)] * 3


def test_a_path_that_is_none_is_answered_in_the_one_shape(api: Api) -> None:
    assert code(api("GET", "nothing/here")) == (404, "NOT_FOUND")
