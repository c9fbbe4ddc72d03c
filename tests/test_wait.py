"""Waiting for a run's end over HTTP, and one run for one idempotency key, however many ask at a time."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from channels.layers import InMemoryChannelLayer
from django.db import OperationalError, connection
from django.test import Client as Plain
from redis import Redis

from agentfleet.asgi import application
from agentfleet.client import Client, NoServer, ServerSays
from agents import clock, private_files
from agents.models import ApiToken, Workspace
from runs import bells, queue, stream
from runs.models import Run
from tests.box import Box, kill
from tests.conftest import PATIENCE, DrivenWorker, until
from tests.making import ask, make_agent, make_workspace, submit

rows = pytest.mark.django_db(transaction=True)
both = pytest.mark.postgresql  # what the two databases do, once on each

LONG = 120  # seconds nobody is meant to wait
AT_A_TIME = 50
ASKS: dict[str, Any] = {"turns": [{"tools": [ask("Which one?")]}, {"text": "thanks"}]}
NO_SANDBOX = 'tools = ["set_status", "ask"]\n'
ANSWERS: dict[str, Any] = {"turns": [{"text": "all good"}]}


class Server:
    """The application behind a real server in this process, on a port of its own. Nobody carries bells to Redis."""

    def __init__(self, folder: Path) -> None:
        _, self.token = ApiToken.issue(make_workspace(), "test")
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        config = uvicorn.Config(
            application, lifespan="off", ws="none", access_log=False, log_config=None, timeout_graceful_shutdown=0
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._listening],))
        self._thread.start()
        self.callers = ThreadPoolExecutor(AT_A_TIME, thread_name_prefix="caller")
        self.http = httpx.Client(
            base_url=f"{self.url}/api/v1/",
            headers={"Authorization": f"Bearer {self.token}"},
            timeout=PATIENCE,
            limits=httpx.Limits(max_connections=None),
            trust_env=False,
        )

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        answer = self.http.request(method, path, json=body, headers=headers)
        return answer.status_code, answer.json()

    def later(self, method: str, path: str, body: Any = None, **headers: str) -> Future[tuple[int, Any]]:
        """The answer to `ask`, while the test goes on."""
        return self.callers.submit(self.ask, method, path, body, **headers)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive()

    def close(self) -> None:
        self.stop()
        self._listening.close()
        self.callers.shutdown()
        self.http.close()


@pytest.fixture
def server(db: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(stream, "POLL", 0.05)  # seconds: there is no Redis here to tell sooner
    server = Server(tmp_path)
    yield server
    server.close()


def waiting() -> int:
    """How many requests await a run."""
    return sum(len(waiters) for waiters in list(stream._watch._waiters.values()))


def code(answer: tuple[int, Any]) -> tuple[int, str]:
    return answer[0], answer[1]["error"]["code"]


# --- what is answered, and when -------------------------------------------------------------------------------------


@rows
@both
def test_who_waits_is_answered_with_the_result_once_the_run_is_over(server: Server, worker: DrivenWorker) -> None:
    run = submit(make_agent(**ANSWERS))
    answer = server.later("GET", f"tasks/{run.pk}/wait?timeout={LONG}")
    until(waiting)
    assert not answer.done()
    worker.drive(run)
    http_status, told = answer.result(PATIENCE)
    assert http_status == 200
    assert told == {
        "taskId": run.pk,
        "status": "finished",
        "output": "all good",
        "error": None,
        "task": server.ask("GET", f"tasks/{run.pk}")[1]["task"],
    }


@rows
def test_what_is_over_is_told_at_once(server: Server, worker: DrivenWorker) -> None:
    run = worker.drive(submit(make_agent(turns=[])))
    http_status, told = server.ask("GET", f"tasks/{run.pk}/wait?timeout={LONG}")
    assert (http_status, told["status"], told["error"]["code"]) == (200, "failed", "SCRIPT_ENDED")


@rows
def test_a_run_that_is_not_over_in_time_is_accepted_and_goes_on(server: Server, worker: DrivenWorker) -> None:
    run = submit(make_agent(**ANSWERS))
    assert server.ask("GET", f"tasks/{run.pk}/wait?timeout=0.2") == (202, {"taskId": run.pk, "status": "pending"})
    assert server.ask("GET", f"tasks/{run.pk}/wait?timeout=0") == (202, {"taskId": run.pk, "status": "pending"})
    assert worker.drive(run).status == "finished"


@rows
def test_a_run_that_asks_a_person_ends_the_wait_with_its_question(server: Server, worker: DrivenWorker) -> None:
    run = submit(make_agent(**ASKS))
    answer = server.later("GET", f"tasks/{run.pk}/wait?timeout={LONG}")
    until(waiting)
    worker.drive(run)
    http_status, told = answer.result(PATIENCE)
    assert (http_status, told["status"]) == (202, "waiting")
    assert (told["task"]["wait_reason"], told["task"]["question"]) == ("input", "Which one?")
    assert "output" not in told


@rows
@pytest.mark.parametrize("reason", ["rate_limit", "retry"])
def test_a_pause_that_passes_by_itself_does_not_end_the_wait(server: Server, reason: str) -> None:
    run = submit(make_agent())
    Run.objects.filter(pk=run.pk).update(status="waiting", wait_reason=reason)
    answer = server.ask("GET", f"tasks/{run.pk}/wait?timeout=0.2")
    assert answer == (202, {"taskId": run.pk, "status": "waiting"})


@rows
def test_a_run_deleted_meanwhile_is_unknown_to_who_waits(server: Server) -> None:
    run = submit(make_agent())
    answer = server.later("GET", f"tasks/{run.pk}/wait?timeout={LONG}")
    until(waiting)
    queue.delete(run, force=True)
    assert code(answer.result(PATIENCE)) == (404, "TASK_NOT_FOUND")


@rows
def test_a_run_that_is_still_being_deleted_is_unknown_to_who_waits(server: Server) -> None:
    run = submit(make_agent())
    answer = server.later("GET", f"tasks/{run.pk}/wait?timeout={LONG}")
    until(waiting)
    Run.objects.filter(pk=run.pk).update(delete_requested_at=clock.now())
    assert code(answer.result(PATIENCE)) == (404, "TASK_NOT_FOUND")


@rows
def test_a_cancelled_run_ends_the_wait(server: Server) -> None:
    run = submit(make_agent())
    answer = server.later("GET", f"tasks/{run.pk}/wait?timeout={LONG}")
    until(waiting)
    queue.cancel(run)
    assert answer.result(PATIENCE)[1]["status"] == "canceled"


@rows
def test_only_the_workspaces_own_tokens_may_wait(server: Server) -> None:
    run = submit(make_agent())
    path = f"tasks/{run.pk}/wait?timeout={LONG}"
    _, strangers = ApiToken.issue(Workspace.objects.create(name="other"), "test")
    assert code(server.ask("GET", path, Authorization=f"Bearer {strangers}")) == (404, "TASK_NOT_FOUND")
    assert code(server.ask("GET", path, Authorization="Bearer af_nobody")) == (401, "UNAUTHORIZED")
    assert code(server.ask("GET", path, Authorization="")) == (401, "UNAUTHORIZED")
    assert code(server.ask("GET", f"tasks/run_nobody/wait?timeout={LONG}")) == (404, "TASK_NOT_FOUND")


@rows
def test_a_token_revoked_meanwhile_is_told_nothing(server: Server, worker: DrivenWorker) -> None:
    run = submit(make_agent(**ANSWERS))
    answer = server.later("GET", f"tasks/{run.pk}/wait?timeout={LONG}")
    until(waiting)
    ApiToken.objects.update(revoked_at=clock.now())
    worker.drive(run)
    assert code(answer.result(PATIENCE)) == (401, "UNAUTHORIZED")


@rows
@pytest.mark.parametrize("seconds", ["-1", "301", "300.5", "soon", "", "1e2", "nan", "inf", "٣", "1.", "9" * 5000])
def test_seconds_that_make_no_sense_are_refused_and_start_nothing(server: Server, seconds: str) -> None:
    run = submit(make_agent())
    assert code(server.ask("GET", f"tasks/{run.pk}/wait?timeout={seconds}")) == (400, "VALIDATION_ERROR")
    assert code(server.ask("POST", f"agents/dev/run?wait={seconds}", {})) == (400, "VALIDATION_ERROR")
    assert Run.objects.count() == 1


# --- starting and waiting in one ------------------------------------------------------------------------------------


@rows
@both
def test_a_run_is_started_and_awaited_in_one_request(server: Server, worker: DrivenWorker) -> None:
    make_agent(**ANSWERS)
    answer = server.later("POST", f"agents/dev/run?wait={LONG}", {"input": "go"})
    until(waiting)
    run = Run.objects.get()
    assert (run.input, run.trigger) == ("go", "manual")
    worker.drive(run)
    http_status, told = answer.result(PATIENCE)
    assert (http_status, told["taskId"], told["status"], told["output"]) == (200, run.pk, "finished", "all good")
    assert told["task"]["input"] == "go"


@rows
def test_without_a_wait_a_run_is_accepted_as_ever(server: Server) -> None:
    make_agent(scale=2)
    for path in ("agents/dev/run", "agents/dev/run?wait=0"):
        http_status, told = server.ask("POST", path, {})
        assert (http_status, told) == (202, {"taskId": told["taskId"], "status": "pending"})


@rows
def test_what_the_plain_request_refuses_is_refused_with_a_wait(server: Server) -> None:
    agent = make_agent()
    path = f"agents/dev/run?wait={LONG}"
    assert code(server.ask("POST", f"agents/nobody/run?wait={LONG}", {})) == (404, "AGENT_NOT_FOUND")
    assert code(server.ask("POST", path, {"inputs": "x"})) == (400, "VALIDATION_ERROR")
    assert code(server.ask("GET", path)) == (405, "METHOD_NOT_ALLOWED")
    queue.pause(agent)
    assert code(server.ask("POST", path, {})) == (409, "AGENT_UNAVAILABLE")
    assert not Run.objects.exists()


@rows
def test_a_repeated_key_waits_for_the_first_ones_run(server: Server, worker: DrivenWorker) -> None:
    make_agent(**ANSWERS)
    key = {"Idempotency-Key": "k"}
    assert server.ask("POST", "agents/dev/run", {"input": "x"}, **key)[0] == 202
    again = server.later("POST", f"agents/dev/run?wait={LONG}", {"input": "x"}, **key)
    until(waiting)
    assert server.ask("POST", "agents/dev/run?wait=0.1", {"input": "x"}, **key)[0] == 202
    worker.drive(Run.objects.get())
    assert again.result(PATIENCE)[1]["output"] == "all good"
    assert code(server.ask("POST", f"agents/dev/run?wait={LONG}", {"input": "y"}, **key)) == (
        409,
        "IDEMPOTENCY_KEY_REUSED",
    )


# --- what waiting costs, and what it outlives -----------------------------------------------------------------------


@rows
@both
def test_many_who_wait_hold_neither_threads_nor_connections(server: Server, worker: DrivenWorker) -> None:
    agent = make_agent(scale=AT_A_TIME, **ANSWERS)
    server.ask("GET", "tasks")
    runs = [submit(agent) for _ in range(AT_A_TIME)]
    answers = [server.later("GET", f"tasks/{run.pk}/wait?timeout={LONG}") for run in runs]
    until(lambda: waiting() == AT_A_TIME)
    with ThreadPoolExecutor(1) as other:
        assert other.submit(server.http.get, "tasks").result(PATIENCE).status_code == 200
    servers = [thread for thread in threading.enumerate() if not thread.name.startswith("caller")]
    assert len(servers) < AT_A_TIME
    if connection.vendor == "postgresql":
        pooled: Any = connection
        assert pooled.pool.get_stats()["pool_size"] <= pooled.pool.max_size < AT_A_TIME
    for run in runs:
        worker.drive(run)
    assert {answer.result(PATIENCE)[1]["status"] for answer in answers} == {"finished"}
    assert waiting() == 0


@rows
def test_many_streams_hold_no_threads(server: Server, worker: DrivenWorker) -> None:
    run = submit(make_agent(**ANSWERS))
    begun = threading.Semaphore(0)

    def follow() -> str:
        with server.http.stream("GET", f"tasks/{run.pk}/stream") as answer:
            lines = answer.iter_lines()
            first = next(lines)
            begun.release()
            return "\n".join([first, *lines])

    streams = [server.callers.submit(follow) for _ in range(AT_A_TIME)]
    for _ in streams:
        assert begun.acquire(timeout=PATIENCE)
    servers = [thread for thread in threading.enumerate() if not thread.name.startswith("caller")]
    assert len(servers) < AT_A_TIME
    worker.drive(run)
    assert all('"to": "finished"' in following.result(PATIENCE) for following in streams)


@rows
def test_all_who_wait_for_one_run_are_answered(server: Server, worker: DrivenWorker) -> None:
    run = submit(make_agent(**ANSWERS))
    answers = [server.later("GET", f"tasks/{run.pk}/wait?timeout={LONG}") for _ in range(20)]
    until(lambda: waiting() == 20)
    worker.drive(run)
    assert {answer.result(PATIENCE)[0] for answer in answers} == {200}


@rows
def test_who_hangs_up_waits_no_more_and_the_run_goes_on(server: Server, worker: DrivenWorker) -> None:
    make_agent(**ANSWERS)
    with pytest.raises(httpx.ReadTimeout):
        server.http.post(f"agents/dev/run?wait={LONG}", json={}, timeout=httpx.Timeout(PATIENCE, read=0.5))
    until(lambda: waiting() == 0)
    run = Run.objects.get()
    assert (run.status, run.cancel_requested_at) == ("pending", None)
    assert worker.drive(run).status == "finished"


@rows
def test_a_database_that_is_away_is_waited_for(
    server: Server, worker: DrivenWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submit(make_agent(**ANSWERS))
    looks, unsettled = [0], stream.unsettled

    def away_at_first(run_ids: list[str]) -> set[str]:
        looks[0] += 1
        if looks[0] < 4:
            raise OperationalError("the database system is starting up")
        return unsettled(run_ids)

    monkeypatch.setattr(stream, "unsettled", away_at_first)
    answer = server.later("GET", f"tasks/{run.pk}/wait?timeout={LONG}")
    until(waiting)
    worker.drive(run)
    assert answer.result(PATIENCE)[0] == 200
    assert looks[0] >= 4


@rows
def test_a_server_that_cannot_say_in_the_end_repeats_what_it_knew(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = submit(make_agent())
    answer = server.later("GET", f"tasks/{run.pk}/wait?timeout={LONG}")
    until(waiting)

    def away(*_: Any) -> Any:
        raise OperationalError("the database system is shutting down")

    monkeypatch.setattr("runs.api.wait.run_or_404", away)
    queue.cancel(run)
    assert answer.result(PATIENCE) == (202, {"taskId": run.pk, "status": "pending"})
    assert "shutting down" in caplog.text


@rows
def test_a_server_that_stops_tells_who_waits_to_ask_again(server: Server) -> None:
    run = submit(make_agent())
    answer = server.later("GET", f"tasks/{run.pk}/wait?timeout={LONG}")
    until(waiting)
    server.stop()
    assert answer.result(PATIENCE) == (202, {"taskId": run.pk, "status": "pending"})


@rows
def test_news_of_a_run_ends_the_wait_and_leaves_no_subscription(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = InMemoryChannelLayer()
    monkeypatch.setattr(stream, "get_channel_layer", lambda: layer)
    monkeypatch.setattr(stream, "POLL", LONG)
    run, other = submit(make_agent(scale=2)), submit(make_agent("other"))
    group = bells.run_group(run.pk)

    def cancel() -> None:
        queue.cancel(run)
        connection.close()

    async def wait() -> None:
        ended = asyncio.create_task(stream.until_settled(run.pk, within=LONG))
        left = asyncio.create_task(stream.until_settled(other.pk, within=LONG))
        await asyncio.to_thread(until, lambda: set(layer.groups) == {group, bells.run_group(other.pk)})
        await asyncio.to_thread(cancel)
        await layer.group_send(group, {"type": "run.reached", "run": run.pk, "number": 2})
        await asyncio.wait_for(ended, PATIENCE)
        left.cancel()
        await asyncio.to_thread(until, lambda: not layer.groups)

    asyncio.run(asyncio.wait_for(wait(), PATIENCE))


@rows
def test_views_alone_answer_what_is_so_without_waiting(worker: DrivenWorker) -> None:
    _, token = ApiToken.issue(make_workspace(), "test")
    run = submit(make_agent(**ANSWERS))
    answer = Plain().get(f"/api/v1/tasks/{run.pk}/wait", headers={"Authorization": f"Bearer {token}"})
    assert (answer.status_code, answer.json()) == (202, {"taskId": run.pk, "status": "pending"})


# --- from Python ----------------------------------------------------------------------------------------------------


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    client = Client(server.url, server.token)
    yield client
    client.close()


@rows
def test_python_code_starts_a_run_and_has_its_result(client: Client, worker: DrivenWorker) -> None:
    make_agent(**ANSWERS)
    with ThreadPoolExecutor(1) as caller:
        made = caller.submit(client.run, "dev", "go", wait=LONG, tags=["t"])
        until(waiting)
        worker.drive(Run.objects.get())
        told = made.result(PATIENCE)
    assert (told["status"], told["output"], told["task"]["tags"]) == ("finished", "all good", ["t"])
    assert client.wait_for(told["taskId"]) == told["task"]


@rows
def test_python_code_that_repeats_its_key_gets_the_same_run(client: Client) -> None:
    make_agent()
    made = [client.run("dev", "go", idempotency_key="k")["taskId"] for _ in range(2)]
    assert made == [Run.objects.get().pk] * 2


@rows
def test_python_code_waits_no_longer_than_it_said(client: Client) -> None:
    run = submit(make_agent())
    with pytest.raises(TimeoutError, match=f"{run.pk} is pending after 0.2 s"):
        client.wait_for(run.pk, timeout=0.2)


@rows
def test_python_code_waits_through_a_question_or_stops_at_it(client: Client, worker: DrivenWorker) -> None:
    run = worker.drive(submit(make_agent(**ASKS)))
    assert client.wait_for(run.pk, or_question=True)["question"] == "Which one?"
    with pytest.raises(TimeoutError, match="is waiting"):
        client.wait_for(run.pk, timeout=0.2)
    with ThreadPoolExecutor(1) as caller:
        ended = caller.submit(client.wait_for, run.pk)
        queue.respond(run, "the first")
        worker.drive(run)
        assert ended.result(PATIENCE)["output"] == "thanks"


@rows
def test_python_code_is_told_that_a_run_is_gone(client: Client) -> None:
    with pytest.raises(ServerSays, match="there is no task"):
        client.wait_for("run_nobody", timeout=LONG)


@rows
def test_python_code_gives_up_on_a_server_that_stays_away(
    server: Server, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submit(make_agent())
    server.stop()
    with pytest.raises(TimeoutError):
        client.wait_for(run.pk, timeout=0.5)
    monkeypatch.setattr("agentfleet.client.AWAY_FOR", 0.5)
    with pytest.raises(NoServer):
        client.wait_for(run.pk)


# --- one key, one run -----------------------------------------------------------------------------------------------


def at_a_time(what: Callable[[], tuple[int, Any]]) -> list[tuple[int, Any]]:
    """The answers of many who ask at the same moment."""
    together = threading.Barrier(AT_A_TIME)

    def ask_with_all() -> tuple[int, Any]:
        together.wait(PATIENCE)
        return what()

    with ThreadPoolExecutor(AT_A_TIME) as callers:
        return [done.result(PATIENCE) for done in [callers.submit(ask_with_all) for _ in range(AT_A_TIME)]]


@rows
@both
@pytest.mark.parametrize("path", ["agents/dev/task", "agents/dev/run"])
def test_fifty_requests_at_a_time_with_one_key_start_one_run(server: Server, path: str) -> None:
    make_agent()
    answers = at_a_time(lambda: server.ask("POST", path, {"input": "x"}, **{"Idempotency-Key": "k"}))
    run = Run.objects.get()
    assert sorted(http_status for http_status, _ in answers) == [200] * (AT_A_TIME - 1) + [202]
    assert {told["taskId"] for _, told in answers} == {run.pk}
    other = server.ask("POST", path, {"input": "y"}, **{"Idempotency-Key": "k"})
    assert code(other) == (409, "IDEMPOTENCY_KEY_REUSED")


@rows
@both
def test_fifty_who_wait_with_one_key_get_the_result_of_one_run(server: Server, worker: DrivenWorker) -> None:
    make_agent(**ANSWERS)
    path, key = f"agents/dev/run?wait={LONG}", {"Idempotency-Key": "k"}
    asked = [server.later("POST", path, {"input": "x"}, **key) for _ in range(AT_A_TIME)]
    until(lambda: waiting() == AT_A_TIME)
    worker.drive(Run.objects.get())
    answers = [answer.result(PATIENCE) for answer in asked]
    assert {(http_status, told["output"]) for http_status, told in answers} == {(200, "all good")}
    assert {told["taskId"] for _, told in answers} == {Run.objects.get().pk}


@rows
@both
def test_of_many_with_one_key_and_other_texts_one_is_served(server: Server) -> None:
    make_agent()
    texts = iter([f"text {number}" for number in range(AT_A_TIME)])
    answers = at_a_time(
        lambda: server.ask("POST", "agents/dev/task", {"input": next(texts)}, **{"Idempotency-Key": "k"})
    )
    assert sorted(http_status for http_status, _ in answers) == [202] + [409] * (AT_A_TIME - 1)
    assert Run.objects.count() == 1


# --- a whole installation -------------------------------------------------------------------------------------------


def whole(test: Any) -> Any:
    """A test of a whole installation."""
    return pytest.mark.box(pytest.mark.engine(pytest.mark.timeout(180)(test)))


@pytest.fixture(scope="module")
def box(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    box = Box(tmp_path_factory.mktemp("box"))
    box.define("quick", turns=[{"text": "done"}], extra=NO_SANDBOX)
    box.define("held", turns=[{"text": "late", "delay": 600}], scale=9, extra=NO_SANDBOX)
    box.define("broken", turns=[], extra=NO_SANDBOX)
    box.define("asker", extra=NO_SANDBOX, **ASKS)
    with box:
        box.apply()
        yield box


@pytest.fixture
def held(box: Box) -> Iterator[str]:
    """A run that does not end by itself."""
    run_id = str(box.client.run("held")["taskId"])
    yield run_id
    if box.task(run_id)["status"] != "canceled":
        box.client.call("POST", f"tasks/{run_id}/cancel")
        box.wait(run_id, "canceled")


def subscribed(box: Box, run_id: str) -> int:
    """How many listen for news of a run."""
    with Redis(unix_socket_path=str(box.home / "redis.sock")) as redis:
        return int(redis.zcard(f"agentfleet:group:{bells.run_group(run_id)}"))


@whole
@pytest.mark.parametrize("words", ["task", "run", "run?wait=60"])
def test_fifty_clients_of_a_server_start_one_run(box: Box, words: str) -> None:
    headers = {
        "Authorization": f"Bearer {private_files.read_json(box.home / 'client.json')['token']}",
        "Idempotency-Key": f"key of {words}",
    }
    with httpx.Client(headers=headers, timeout=PATIENCE * 3, limits=httpx.Limits(max_connections=None)) as http:
        url = f"{box.client.url}/api/v1/agents/quick/{words}"
        answers = at_a_time(lambda: told(http.post(url, json={"input": words})))
        other = told(http.post(url, json={"input": "something else"}))
    [[run_id]] = box.rows("SELECT id FROM runs_run WHERE idempotency_key = ?", f"key of {words}")
    assert {answer["taskId"] for _, answer in answers} == {run_id}
    first = [] if "wait" in words else [202]
    assert sorted(http_status for http_status, _ in answers) == [200] * (AT_A_TIME - len(first)) + first
    assert code(other) == (409, "IDEMPOTENCY_KEY_REUSED")
    assert box.wait(run_id)["output"] == "done"


@whole
def test_python_code_waits_over_a_restart_of_the_server(box: Box, held: str) -> None:
    with ThreadPoolExecutor(1) as caller:
        ended = caller.submit(box.client.wait_for, held)
        box.until(lambda: subscribed(box, held))
        web = box.pids()["web"]
        kill(web)
        box.until(lambda: box.pids()["web"] != web)
        box.client.steadily("POST", f"tasks/{held}/cancel")
        assert ended.result(PATIENCE)["status"] == "canceled"


@whole
def test_who_hangs_up_leaves_no_subscription_and_the_run_goes_on(box: Box, held: str) -> None:
    with pytest.raises(NoServer):
        box.client.call("GET", f"tasks/{held}/wait?timeout={LONG}", timeout=httpx.Timeout(PATIENCE, read=1))
    box.until(lambda: not subscribed(box, held))
    assert box.wait(held, "processing")["cancel_requested_at"] is None


@whole
def test_the_command_line_prints_the_answer_and_its_exit_code_says_what_became_of_it(box: Box) -> None:
    done = box.cli("run", "quick", "--wait", "60")
    assert (done.stdout, done.returncode) == ("done\n", 0)
    failed = box.cli("run", "broken", "--wait", "60", check=False)
    assert (failed.stdout, failed.returncode) == ("", 1)
    assert "SCRIPT_ENDED" in failed.stderr
    asked = box.cli("run", "asker", "--wait", "60", check=False)
    assert (asked.stdout, asked.returncode) == ("", 4)
    assert "Which one?" in asked.stderr
    late = box.cli("run", "held", "--wait", "0.5", check=False)
    assert (late.stdout, late.returncode) == ("", 4)
    assert re.search(r"run_\w+ is (pending|processing)", late.stderr)


def told(answer: httpx.Response) -> tuple[int, Any]:
    return answer.status_code, answer.json()
