"""The gateway: its routes to the letter, who may ask and how long, and what survives its process."""

from __future__ import annotations

import asyncio
import json
import math
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.conf import settings as django_settings
from django.db import OperationalError, connection
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentfleet.doctor import processes
from agentfleet.doctor.findings import Place, Wrong
from agentfleet.ports import free_port
from agents import clock, private_files
from agents.models import ApiToken
from agents.redaction import NOTHING_SECRET
from runs import agent_calls, lifecycle, lock_table, locks
from runs.gateway import routes
from runs.gateway.commits import Commits, Wish
from runs.gateway.routes import Routes
from runs.gateway.server import Gateway, places, serve_until
from runs.gateway.waits import Waiting, Waits
from runs.models import Attempt, CallState, Event, Lock, Run, ToolCall
from tests.at_work import at_work, begun, name_of, secret_of
from tests.conftest import PATIENCE, until
from tests.making import make_agent

pytestmark = pytest.mark.django_db(transaction=True)
on_both = pytest.mark.postgresql

GITHUB = "github://acme/app/issues/1"


@contextmanager
def serving(file: Path) -> Iterator[None]:
    """A gateway in this process, on this test's database."""
    loops: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    async def serve() -> None:
        told = asyncio.Event()
        loops.append((asyncio.get_running_loop(), told))
        await serve_until(told, file)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    until(lambda: loops)
    try:
        yield
    finally:
        loop, told = loops[0]
        loop.call_soon_threadsafe(told.set)
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.fixture
def place(tmp_path: Path) -> tuple[Path, str]:
    """What names the address, and the URL there."""
    file, port = tmp_path / "gateway.json", free_port()
    private_files.write_json(file, {"addresses": ["127.0.0.1"], "port": port})
    return file, f"http://127.0.0.1:{port}"


@pytest.fixture
def http(place: tuple[Path, str]) -> Iterator[httpx.Client]:
    file, url = place
    # Unlimited: a pool that closes what is idle too much closes at times what a thread has just been given.
    pool = httpx.Limits()
    with serving(file), httpx.Client(base_url=url, timeout=PATIENCE, limits=pool, trust_env=False) as client:
        until(partial(answers, url))
        yield client


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def post(http: httpx.Client, path: str, attempt: Attempt | None = None, **body: Any) -> tuple[int, Any]:
    shown = {"secret": secret_of(attempt)} if attempt else {}
    answer = http.post(path, json={**shown, **body})
    return answer.status_code, answer.json()


def get(http: httpx.Client, path: str, attempt: Attempt, **query: Any) -> tuple[int, Any]:
    answer = http.get(path, params={"secret": secret_of(attempt), **query})
    return answer.status_code, answer.json()


# --- the routes, in the contract's order --------------------------------------------------------------------------


def test_health_is_anybodys(http: httpx.Client) -> None:
    answer = http.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


LOCKS = ["/locks/acquire", "/locks/release", "/locks/heartbeat"]
POSTS = [
    *LOCKS,
    "/calls",
    *(f"/signals/{name}" for name in ("rerun", "status", "trigger", "return", "exit")),
    "/shutdown",
]


NO_OBJECTS = [b"", b"{", b"[1]", b"null", b'"text"', b'{"a": \xff}', b"[" * 100_000, b"\xef\xbb\xbf{}"]


def test_what_is_no_json_object_is_said_before_all_else(http: httpx.Client) -> None:
    for path, body in product(POSTS, NO_OBJECTS):
        answer = http.post(path, content=body, headers={"Authorization": "Bearer x"})
        assert (answer.status_code, answer.json()) == (400, {"error": "invalid JSON body"}), (path, body[:20])


def test_a_secret_is_missed_before_the_rest(http: httpx.Client) -> None:
    for path in POSTS:
        for nothing in ({}, {"secret": ""}, {"secret": None}, {"secret": 7}):
            assert post(http, path, **nothing) == (400, {"error": "missing secret"}), path
    for path in ("/locks/list", "/calls/any", "/calls/any?wait=1"):
        answer = http.get(path)
        assert (answer.status_code, answer.json()) == (400, {"error": "missing secret"}), path


FIELDS = {
    **{path: ["resourceKey"] for path in LOCKS},
    "/calls": ["targetAgent", "context"],
    "/signals/status": ["text"],
    "/signals/trigger": ["targetAgent", "context"],
    "/signals/return": ["value"],
    "/signals/exit": ["code"],
}


def test_fields_are_missed_in_their_order_before_the_secret_is_looked_at(http: httpx.Client) -> None:
    for path, fields in FIELDS.items():
        body: dict[str, Any] = {"secret": "nobody's"}
        for field in fields:
            assert post(http, path, **body) == (400, {"error": f"missing {field}"})
            assert post(http, path, **body, **{field: None}) == (400, {"error": f"missing {field}"})
            body[field] = 0 if field == "code" else "any"
        assert post(http, path, **body) == (403, {"error": "invalid secret"})


def test_whether_a_field_may_be_empty(http: httpx.Client) -> None:
    attempt = at_work()
    for path, field in (
        ("/locks/acquire", "resourceKey"),
        ("/signals/status", "text"),
        ("/signals/trigger", "context"),
    ):
        missing = (400, {"error": f"missing {field}"})
        assert post(http, path, attempt, **{"targetAgent": "nobody", field: ""}) == missing
    assert post(http, "/signals/return", attempt, value="") == (200, {"ok": True})
    assert post(http, "/calls", attempt, targetAgent="nobody", context="")[0] == 409


def test_a_length_of_time_is_a_positive_number(http: httpx.Client) -> None:
    secret = secret_of(at_work())
    for path, ttl in product(("/locks/acquire", "/locks/heartbeat"), ("60", -1, True, [1], math.inf, math.nan, -0.5)):
        answer = http.post(path, content=json.dumps({"secret": secret, "resourceKey": GITHUB, "ttl": ttl}))
        assert (answer.status_code, answer.json()) == (400, {"error": "invalid ttl"}), ttl
    assert not Lock.objects.exists()
    for ttl in (0, None, 1e300):  # none, and longer than anybody lives
        assert (
            http.post("/locks/acquire", json={"secret": secret, "resourceKey": GITHUB, "ttl": ttl}).status_code == 200
        )


def test_what_is_too_large_is_refused_and_the_next_is_heard(http: httpx.Client) -> None:
    attempt = at_work()
    status, body = post(http, "/locks/acquire", attempt, resourceKey="x" * 1024 * 1024)
    assert (status, body) == (413, {"error": "payload too large"})
    assert post(http, "/locks/acquire", attempt, resourceKey="x" * 1000 * 1000)[0] == 200


def test_what_is_not_there_is_not_found(http: httpx.Client) -> None:
    for method, path in (
        ("GET", "/"),
        ("GET", "/locks/acquire"),
        ("POST", "/health"),
        ("GET", "/calls/"),
        ("PUT", "/calls"),
    ):
        assert http.request(method, path).status_code == 404, path


def test_the_secret_may_stand_in_the_body_the_query_or_the_header(http: httpx.Client) -> None:
    attempt = at_work()
    secret, key = secret_of(attempt), {"resourceKey": GITHUB}
    assert http.post("/locks/acquire", json={"secret": secret, **key}).status_code == 200
    assert http.post("/locks/acquire", params={"secret": secret}, json=key).status_code == 200
    bearer = {"Authorization": f"Bearer {secret}"}
    assert http.post("/locks/acquire", json=key, headers=bearer).status_code == 200
    assert [lock["resourceKey"] for lock in http.get("/locks/list", headers=bearer).json()] == [GITHUB]
    assert http.get("/locks/list", headers={"Authorization": f"Basic {secret}"}).status_code == 400


def test_no_secret_is_ever_logged(
    http: httpx.Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(self: Commits, wish: Wish) -> Any:
        raise ZeroDivisionError

    caplog.set_level("DEBUG")
    attempt = at_work()
    monkeypatch.setattr(Commits, "answer", breaks)
    assert get(http, "/locks/list", attempt) == (500, {"error": "internal error"})
    assert post(http, "/locks/acquire", attempt, resourceKey=GITHUB) == (500, {"error": "internal error"})
    ours = [line for line in caplog.records if line.name.startswith(("runs", "uvicorn"))]
    assert len(ours) == 2
    assert not [line for line in ours if secret_of(attempt) in f"{line.getMessage()}{line.exc_text}"]


def routes_told() -> set[tuple[str, str]]:
    page = (django_settings.BASE_DIR / "docs" / "gateway.md").read_text()
    return {(method, path) for method, path in re.findall(r"^\| `(GET|POST) (/\S+)` \|", page, re.MULTILINE)}


def test_every_route_is_told() -> None:
    answering = Routes()
    there = {(method, path) for method, path in answering.table()}
    answering.stop(PATIENCE)
    assert routes_told() == {(method, f"{path}{{callId}}" if path.endswith("/") else path) for method, path in there}


def test_the_doctor_sees_whether_it_answers(place: tuple[Path, str], tmp_path: Path) -> None:
    file, url = place
    with serving(file):
        until(partial(answers, url))
        assert processes.look_at_gateway(Place(tmp_path, 1)).startswith("it answers at 127.0.0.1")
    with pytest.raises(Wrong, match=r"no sandbox gets locks: .*gateway\.log"):
        processes.look_at_gateway(Place(tmp_path, 1))
    file.unlink()
    assert processes.look_at_gateway(Place(tmp_path, 1)) == "no sandbox has needed it yet"


# --- locks over HTTP ----------------------------------------------------------------------------------------------


@on_both
def test_a_lock_is_had_kept_listed_and_given_back(http: httpx.Client) -> None:
    mine, other = at_work(), at_work("other")
    assert post(http, "/locks/acquire", mine, resourceKey=GITHUB) == (200, {"ok": True, "resourceKey": GITHUB})
    lock = Lock.objects.get()
    since = lock_table.milliseconds(lock.held_since)
    refused = {"ok": False, "holder": name_of(mine), "heldSince": since}
    assert post(http, "/locks/acquire", other, resourceKey=GITHUB) == (409, refused)
    status, kept = post(http, "/locks/heartbeat", mine, resourceKey=GITHUB, ttl=60)
    assert (status, set(kept)) == (200, {"ok", "expiresAt"})
    listed = {"resourceKey": GITHUB, "holder": name_of(mine), "heldSince": since, "expiresAt": kept["expiresAt"]}
    assert get(http, "/locks/list", mine) == (200, [listed])
    assert get(http, "/locks/list", other) == (200, [])
    assert post(http, "/locks/release", other, resourceKey=GITHUB) == (
        409,
        {"ok": False, "reason": f"held by {name_of(mine)}"},
    )
    assert post(http, "/locks/release", mine, resourceKey=GITHUB) == (200, {"ok": True})
    assert post(http, "/locks/release", mine, resourceKey=GITHUB) == (404, {"ok": False, "reason": "lock not found"})


def test_an_operator_sees_every_lock_and_a_sandbox_only_its_own(http: httpx.Client) -> None:
    mine = at_work()
    assert post(http, "/locks/acquire", mine, resourceKey=GITHUB)[0] == 200
    _, token = ApiToken.issue(mine.run.workspace, "operator")
    refused = (401, {"error": "Unauthorized"})
    for shown in ("nobody's", secret_of(mine)):
        answer = http.get("/locks/status", headers={"authorization": f"Bearer {shown}"})
        assert (answer.status_code, answer.json()) == refused
    answer = http.get("/locks/status", headers={"authorization": f"Bearer {token}"})
    since = lock_table.milliseconds(Lock.objects.get().held_since)
    lock = {"resourceKey": GITHUB, "agentName": mine.run.agent.name, "holder": name_of(mine), "heldSince": since}
    assert (answer.status_code, answer.json()) == (200, {"locks": [lock]})


def test_the_secret_is_good_from_the_first_moment_to_the_last(http: httpx.Client) -> None:
    lease, attempt = begun(make_agent())
    assert post(http, "/locks/acquire", attempt, resourceKey=GITHUB)[0] == 200
    assert get(http, "/locks/list", attempt)[0] == 200
    lifecycle.finish(lease, "done", redactor=NOTHING_SECRET)
    for path in LOCKS:
        assert post(http, path, attempt, resourceKey=GITHUB) == (403, {"error": "invalid secret"})
    assert get(http, "/locks/list", attempt) == (403, {"error": "invalid secret"})
    assert post(http, "/signals/status", attempt, text="still here") == (403, {"error": "invalid secret"})
    assert post(http, "/calls", attempt, targetAgent="other", context="") == (403, {"error": "invalid secret"})
    assert not Lock.objects.exists()


def test_a_retried_attempt_has_another_secret(http: httpx.Client) -> None:
    lease, first = begun(make_agent())
    assert post(http, "/locks/acquire", first, resourceKey=GITHUB)[0] == 200
    error = {"code": "NO", "message": "no"}
    lifecycle.retry(lease, first.run, error, wake_at=clock.now(), host_id="here", redactor=NOTHING_SECRET)
    second = Attempt.objects.get(run=first.run_id, number=2)
    assert post(http, "/locks/acquire", first, resourceKey=GITHUB)[0] == 403
    assert post(http, "/locks/acquire", second, resourceKey=GITHUB)[0] == 200
    assert Lock.objects.get().holder == name_of(second) != name_of(first)


@on_both
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.text(min_size=1), st.text(st.sampled_from("'\"\\\n\r\0\ud800 €😀%s{}"), min_size=1)))
def test_any_key_goes_there_and_back(http: httpx.Client, key: str) -> None:
    first = Lock.objects.filter(key="of the test").first()
    attempt = first.attempt if first else at_work()
    for each in ("of the test", key, key * (65_536 // len(key))):
        body = json.dumps({"secret": secret_of(attempt), "resourceKey": each})  # with halves of characters
        answer = http.post("/locks/acquire", content=body)
        assert answer.status_code == 200
        kept = answer.json()["resourceKey"]
        assert kept == each.replace("\0", "\ufffd").replace("\ud800", "\ufffd")
        assert kept in {lock["resourceKey"] for lock in get(http, "/locks/list", attempt)[1]}
        if each != "of the test":
            assert http.post("/locks/release", content=body).json() == {"ok": True}


def test_a_secret_in_a_key_is_not_stored(http: httpx.Client) -> None:
    attempt = at_work()
    assert post(http, "/locks/acquire", attempt, resourceKey=f"https://x:{secret_of(attempt)}@host")[0] == 200
    assert secret_of(attempt) not in Lock.objects.get().key


@on_both
def test_of_fifty_clients_one_is_inside_at_a_time(http: httpx.Client) -> None:
    attempts = [at_work() for _ in range(50)]
    lock = threading.Lock()
    inside: list[int] = []
    entered, together = [0], [0]

    def compete(attempt: Attempt) -> None:
        for _ in range(4):
            if post(http, "/locks/acquire", attempt, resourceKey=GITHUB)[0] == 409:
                continue
            with lock:
                inside.append(attempt.pk)
                entered[0] += 1
                together[0] += len(inside) > 1
            with lock:
                inside.remove(attempt.pk)
            assert post(http, "/locks/release", attempt, resourceKey=GITHUB)[0] == 200

    with ThreadPoolExecutor(50) as threads:
        list(threads.map(compete, attempts))
    assert together == [0]
    assert entered[0] > 0


@on_both
def test_two_gateways_on_one_database_agree(http: httpx.Client, tmp_path: Path) -> None:
    file, port = tmp_path / "second.json", free_port()
    private_files.write_json(file, {"addresses": ["127.0.0.1"], "port": port})
    a, b = at_work("a"), at_work("b")
    with serving(file), httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as second:
        until(lambda: answers(str(second.base_url)))
        assert post(http, "/locks/acquire", a, resourceKey="K1")[0] == 200
        assert post(second, "/locks/acquire", b, resourceKey="K1")[1]["holder"] == name_of(a)
        assert post(second, "/locks/acquire", b, resourceKey="K2")[0] == 200
        assert post(http, "/locks/acquire", a, resourceKey="K2")[1]["holder"] == name_of(b)
        assert post(second, "/locks/acquire", b, resourceKey="K1")[1]["cycle"] == [name_of(b), "K1", name_of(a), "K2"]
        rivals = [(client, attempt) for client in (http, second) for attempt in (a, b)] * 5

        def compete(rival: tuple[httpx.Client, Attempt]) -> int:
            client, attempt = rival
            return post(client, "/locks/acquire", attempt, resourceKey="K3")[0]

        with ThreadPoolExecutor(20) as threads:
            won = {
                rival[1].pk for rival, status in zip(rivals, threads.map(compete, rivals), strict=True) if status == 200
            }
    assert len(won) == 1


def test_one_that_cannot_be_decided_fails_for_itself(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = at_work("good"), at_work("bad")
    decide = locks.answer

    def answer(asks: Any) -> Any:
        if any(ask.key == "bad" for ask in asks):
            raise ZeroDivisionError
        return decide(asks)

    monkeypatch.setattr(locks, "answer", answer)
    asked = [(good, f"good {number}") for number in range(10)] + [(bad, "bad")]
    with ThreadPoolExecutor(11) as threads:
        statuses = list(threads.map(lambda one: post(http, "/locks/acquire", one[0], resourceKey=one[1])[0], asked))
    assert statuses == [200] * 10 + [500]


def test_without_a_database_it_says_so_and_goes_on_when_that_is_back(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(*_: Any, **__: Any) -> Any:
        raise OperationalError("the server is away")

    attempt = at_work()
    with monkeypatch.context() as outage:
        outage.setattr(locks, "answer", gone)
        outage.setattr(routes, "caller", gone)
        assert post(http, "/locks/acquire", attempt, resourceKey=GITHUB)[0] == 503
        called = post(http, "/calls", attempt, targetAgent="other", context="")
        assert called == (503, {"ok": False, "reason": "call dispatcher not ready"})
        assert post(http, "/signals/status", attempt, text="here")[0] == 503
        assert get(http, "/calls/any", attempt)[0] == 503
    assert post(http, "/locks/acquire", attempt, resourceKey=GITHUB)[0] == 200


# --- signals and calls --------------------------------------------------------------------------------------------


@on_both
def test_what_an_agent_says_of_its_run_reaches_the_row(http: httpx.Client) -> None:
    attempt = at_work()
    said: dict[str, dict[str, Any]] = {
        "/signals/status": {"text": 'look: "quoted"\nand more'},
        "/signals/return": {"value": "x" * 70_000},
        "/signals/rerun": {},
        "/signals/exit": {"code": 13},
        "/signals/trigger": {"targetAgent": "other", "context": "do it"},
    }
    for path, words in said.items():
        assert post(http, path, attempt, **words) == (200, {"ok": True})
    run = Run.objects.get(pk=attempt.run_id)
    assert (run.status_text, run.return_value) == ('look: "quoted"\nand more', "x" * 70_000)
    assert (run.rerun_requested, run.exit_requested) == (True, 13)
    assert Run.objects.count() == 1


def test_an_exit_code_is_one(http: httpx.Client) -> None:
    attempt = at_work()
    for code in (-1, 256, "15", 1.5, True):
        assert post(http, "/signals/exit", attempt, code=code) == (400, {"error": "invalid code"}), code


@on_both
def test_shutdown_ends_the_run_and_its_secret(http: httpx.Client) -> None:
    attempt = at_work()
    assert post(http, "/locks/acquire", attempt, resourceKey=GITHUB)[0] == 200
    killed = {"killed": True, "container": attempt.sandbox_name}
    assert post(http, "/shutdown", attempt, reason="enough", details={"why": ["so"]}) == (200, killed)
    assert Run.objects.get(pk=attempt.run_id).cancel_requested_at is not None
    assert post(http, "/shutdown", attempt) == (403, {"error": "invalid secret"})
    assert post(http, "/locks/acquire", attempt, resourceKey=GITHUB) == (403, {"error": "invalid secret"})


def test_a_call_starts_a_run_and_its_state_is_told_to_its_caller_alone(http: httpx.Client) -> None:
    make_agent("helper", scale=1)
    mine, other = at_work(), at_work("other")
    status, answer = post(http, "/calls", mine, targetAgent="helper", context="")
    assert (status, answer["ok"], set(answer)) == (200, True, {"ok", "callId"})
    assert get(http, f"/calls/{answer['callId']}", mine) == (200, {"status": "pending"})
    assert get(http, f"/calls/{answer['callId']}", other) == (404, {"error": "call not found"})
    assert get(http, "/calls/nothing%20such", mine) == (404, {"error": "call not found"})
    assert get(http, "/calls/nothing", mine, wait=1) == (404, {"error": "call not found"})
    refused = (409, {"ok": False, "reason": 'target agent "nobody" not found'})
    assert post(http, "/calls", mine, targetAgent="nobody", context="") == refused


def ended(run_id: str, value: str) -> None:
    agent_id = Run.objects.values_list("agent_id", flat=True).get(pk=run_id)
    lease = lifecycle.claim(agent_id, owner="me", host_id="here")
    assert lease is not None
    Run.objects.filter(pk=lease.run_id).update(return_value=value)
    lifecycle.finish(lease, "done", redactor=NOTHING_SECRET)


@on_both
def test_who_waits_for_a_call_is_told_when_it_is_over(http: httpx.Client) -> None:
    make_agent("helper", scale=1)
    caller = at_work()
    call_id = post(http, "/calls", caller, targetAgent="helper", context="")[1]["callId"]
    assert get(http, f"/calls/{call_id}", caller, wait=0.2) == (200, {"status": "pending"})
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(get, http, f"/calls/{call_id}", caller, wait=20)
        ended(agent_calls.run_of(call_id), "found it")
        assert waiting.result(PATIENCE) == (200, {"status": "completed", "returnValue": "found it"})


def test_a_command_that_waits_for_two_calls_has_its_slot_back_after_the_last(
    http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it is told of the first it is told at once; the second may need that slot."""
    begun_to_wait: list[Waiting] = []
    wait = Waits._wait

    async def counted(waits: Waits, waiting: Waiting, seconds: float) -> Any:
        begun_to_wait.append(waiting)
        return await wait(waits, waiting, seconds)

    monkeypatch.setattr(Waits, "_wait", counted)
    caller = at_work()
    ToolCall.objects.create(
        attempt=caller, call_id="1-0", model_call_id="c", position=1, index=0, name="bash", arguments={},
        state=CallState.STARTED, sandbox_id="box",
    )  # fmt: skip
    calls = []
    for name in ("first", "second"):
        make_agent(name, scale=1)
        calls.append(post(http, "/calls", caller, targetAgent=name, context="")[1]["callId"])

    def is_lent() -> bool:
        return Run.objects.filter(pk=caller.run_id, slot_lent_at__isnull=False).exists()

    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(get, http, f"/calls/{call_id}", caller, wait=20) for call_id in calls]
        until(lambda: len(begun_to_wait) == 2)
        assert is_lent()
        for number, call_id in enumerate(calls):
            ended(agent_calls.run_of(call_id), "found it")
            assert waiting[number].result(PATIENCE) == (200, {"status": "completed", "returnValue": "found it"})
            assert is_lent() is (number == 0)
    told = Event.objects.filter(run=caller.run_id, type__startswith="slot.").order_by("number")
    assert list(told.values_list("type", flat=True)) == ["slot.lent", "slot.back"]


def test_a_hundred_that_wait_leave_room_for_others(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    make_agent("helper", scale=1)
    callers = [at_work() for _ in range(5)]
    calls = [(each, post(http, "/calls", each, targetAgent="helper", context="")[1]["callId"]) for each in callers]
    begun_to_wait: list[str] = []
    begin_wait = agent_calls.begin_wait

    def counted(caller: Attempt, call_id: str) -> None:
        begin_wait(caller, call_id)
        begun_to_wait.append(call_id)

    monkeypatch.setattr(agent_calls, "begin_wait", counted)
    many = httpx.Client(base_url=http.base_url, timeout=PATIENCE, limits=httpx.Limits(), trust_env=False)
    with many, ThreadPoolExecutor(100) as threads:
        waiting = [threads.submit(get, many, f"/calls/{call_id}", each, wait=20) for each, call_id in calls * 20]
        until(lambda: len(begun_to_wait) == 100)
        assert post(http, "/locks/acquire", callers[0], resourceKey=GITHUB)[0] == 200
        assert get(http, f"/calls/{calls[0][1]}", callers[0]) == (200, {"status": "pending"})
        for _, call_id in calls:
            ended(agent_calls.run_of(call_id), "found it")
        told = [wait.result(PATIENCE) for wait in waiting]
    assert told == [(200, {"status": "completed", "returnValue": "found it"})] * 100


# --- the process --------------------------------------------------------------------------------------------------


def test_it_listens_where_the_file_says_and_nowhere_else() -> None:
    everywhere = {"addresses": ["0.0.0.0", "::", "127.0.0.1", "no address", "::1"], "port": 8643}  # noqa: S104
    assert list(places(everywhere)) == [("127.0.0.1", 8643), ("::1", 8643)]
    assert list(places({"addresses": "127.0.0.1", "port": 1})) == []
    assert list(places({"addresses": ["127.0.0.1"]})) == []
    assert list(places({})) == []


def test_it_follows_the_file(tmp_path: Path) -> None:
    file, first, second = tmp_path / "gateway.json", free_port(), free_port()
    with serving(file):
        private_files.write_json(file, {"addresses": ["203.0.113.7", "127.0.0.1"], "port": first})
        until(lambda: answers(f"http://127.0.0.1:{first}"))
        private_files.write_json(file, {"addresses": ["127.0.0.1", "127.0.0.2"], "port": second})
        until(lambda: answers(f"http://127.0.0.1:{second}") and answers(f"http://127.0.0.2:{second}"))
        until(lambda: not answers(f"http://127.0.0.1:{first}"))


def test_a_port_that_is_taken_is_had_when_it_is_free(tmp_path: Path) -> None:
    file = tmp_path / "gateway.json"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        private_files.write_json(file, {"addresses": ["127.0.0.1"], "port": port})

        async def look_twice() -> tuple[int, int]:
            gateway = Gateway(file)
            await gateway.look()
            before = len(gateway.listening)
            taken.close()
            await gateway.look()
            after = len(gateway.listening)
            await gateway.stop()
            return before, after

        assert asyncio.run(look_twice()) == (0, 1)


@contextmanager
def process(home: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """`agentfleet gateway` on this test's database, when it answers."""
    name = connection.settings_dict["NAME"]
    env = {**os.environ, "AGENTFLEET_HOME": str(home), "SECRET_KEY": django_settings.SECRET_KEY}
    if connection.vendor == "sqlite":
        (home / "agentfleet.sqlite3").unlink(missing_ok=True)
        (home / "agentfleet.sqlite3").symlink_to(name)
    else:
        env["DATABASE_URL"] = f"{env['DATABASE_URL'].rpartition('/')[0]}/{name}"
    private_files.write_json(home / "gateway.json", {"addresses": ["127.0.0.1"], "port": port})
    with subprocess.Popen([sys.executable, "-m", "agentfleet", "gateway"], env=env) as started:
        try:
            until(lambda: answers(f"http://127.0.0.1:{port}"))
            yield started
        finally:
            started.kill()


@on_both
def test_what_was_answered_is_there_after_a_kill_and_the_process_goes_when_told(tmp_path: Path) -> None:
    port, attempt = free_port(), at_work()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=PATIENCE) as client:
        with process(tmp_path, port) as gateway:
            assert post(client, "/locks/acquire", attempt, resourceKey=GITHUB)[0] == 200
            gateway.kill()
        assert Lock.objects.get().holder == name_of(attempt)
        with process(tmp_path, port) as gateway:
            assert post(client, "/locks/acquire", at_work("other"), resourceKey=GITHUB)[1]["holder"] == name_of(attempt)
            assert [lock["resourceKey"] for lock in get(client, "/locks/list", attempt)[1]] == [GITHUB]
            began = time.monotonic()
            gateway.send_signal(signal.SIGTERM)
            assert gateway.wait(PATIENCE) == 0
            assert time.monotonic() - began < 5  # 2 on a machine with nothing else to do


HEAVY = ("celery", "rest_framework", "unfold", "docker", "anthropic", "pydantic_ai")


def test_it_loads_nothing_that_it_does_not_need(tmp_path: Path) -> None:
    program = """
import asyncio, sys
from agentfleet import roles
def listed(serving):
    serving.close()
    print([name for name in sys.argv[1:] if name in sys.modules], flush=True)
asyncio.run = listed
roles.gateway()
"""
    env = {**os.environ, "AGENTFLEET_HOME": str(tmp_path)}
    argv = [sys.executable, "-c", program, *HEAVY]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
