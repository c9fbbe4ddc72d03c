"""The whole installation as its user meets it: the command line, HTTP, websockets, real processes, engine and Redis."""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from django.db import connection
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from agentfleet import background, ports
from agents import private_files
from tests.box import Box, keep_webhook_secret, kill, standing
from tests.making import bash

pytestmark = [pytest.mark.box, pytest.mark.engine, pytest.mark.timeout(180)]

ROOT = Path(__file__).parents[1]
ISSUE = ROOT / "examples" / "triage" / "issue-opened.json"
SECRET = "it-is-signed-with-this"
ROLES = {"web", "worker", "beat", "gateway", "redis", "supervisor"}
NO_SANDBOX = 'tools = ["set_status", "ask"]\n'
ON_ISSUE = '[[webhooks]]\nsource = "github"\nevents = ["issues"]\nactions = ["opened"]\n'
ON_PUSH = '[[webhooks]]\nsource = "github"\nevents = ["push"]\n'
# Ten lines in five seconds, each once; `ran` counts how often the command was started.
SLOW = (
    "echo started >> ran; for i in 1 2 3 4 5 6 7 8 9 10; do echo line $i; sleep 0.5; done; echo starts: $(wc -l < ran)"
)
LINES = "".join(f"line {number}\n" for number in range(1, 11)) + "starts: 1\n"
MIB = 1024 * 1024


def status_text(text: str) -> dict[str, Any]:
    return {"name": "set_status", "arguments": {"text": text}}


@pytest.fixture(scope="module")
def installation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    box = Box(tmp_path_factory.mktemp("box"), from_nothing=True)
    keep_webhook_secret(box.home, SECRET)
    box.define("quick", turns=[{"text": "done"}], scale=4, extra=NO_SANDBOX)
    box.define("dev", turns=[{"tools": [bash("echo hello")]}, {"expect": ["hello"], "text": "It said hello."}])
    box.define("slow", turns=[{"tools": [bash(SLOW)]}, {"text": "Counted."}], scale=4)
    box.define("sleeper", turns=[{"tools": [bash("echo asleep; sleep 600")]}], scale=4)
    box.define("busy", turns=[{"text": "late", "delay": 600}], extra=NO_SANDBOX)
    box.define("broken", turns=[], extra=NO_SANDBOX)
    question = {"name": "ask", "arguments": {"question": "Left or right?"}}
    box.define("asker", turns=[{"tools": [question]}, {"expect": ["left"], "text": "Went left."}], extra=NO_SANDBOX)
    turns = [{"tools": [status_text("one")]}, {"tools": [status_text("two")]}, {"text": "after three turns"}]
    box.define("wordy", turns=turns, extra=NO_SANDBOX)
    box.define("on-issue", turns=[{"text": "Seen."}], scale=4, extra=NO_SANDBOX + ON_ISSUE)
    box.define("on-issue-too", turns=[{"text": "Seen."}], scale=4, extra=NO_SANDBOX + ON_ISSUE)
    box.define("no-tasks", turns=[{"text": "By hand."}], extra=NO_SANDBOX + ON_PUSH + "[task]\nenabled = false\n")
    with box:
        box.apply()
        yield box


@pytest.fixture
def box(installation: Box) -> Box:
    """The installation that most tests share, up."""
    if background.supervisor(installation.home) is None:
        installation.up()
    return installation


@pytest.fixture(scope="module")
def crippled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Box]:
    """An installation without an engine, whose Redis is dead and stays so, and that listens on every address."""
    folder = tmp_path_factory.mktemp("crippled")
    box = Box(folder, restart=False, host="0.0.0.0", DOCKER_HOST=f"unix://{folder}/nobody.sock")  # noqa: S104
    keep_webhook_secret(box.home, SECRET)
    box.define("dev", turns=[{"tools": [bash("echo hello")]}, {"text": "done"}])
    box.define("on-issue", turns=[{"text": "Seen."}], scale=4, extra=NO_SANDBOX + ON_ISSUE)
    with box:
        box.apply()
        kill(box.pids()["redis"])
        yield box


@pytest.fixture
def http(box: Box) -> Iterator[httpx.Client]:
    """As `curl` with the token of client.json."""
    with httpx.Client(base_url=box.client.url, headers=bearer(box), timeout=30) as client:
        yield client


@pytest.fixture
def stranger(box: Box) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=box.client.url, timeout=30) as client:
        yield client


def bearer(box: Box) -> dict[str, str]:
    return {"Authorization": f"Bearer {private_files.read_json(box.home / 'client.json')['token']}"}


def issue(**changes: Any) -> bytes:
    """GitHub's example of a new issue, each a different one."""
    payload = json.loads(ISSUE.read_bytes())
    payload["issue"]["title"] = secrets.token_hex(8)
    return json.dumps({**payload, **changes}).encode()


def signed(body: bytes, secret: str = SECRET) -> dict[str, str]:
    digest = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    return {
        "Content-Type": "application/json",
        "X-GitHub-Event": "issues",
        "X-GitHub-Delivery": secrets.token_hex(8),
        "X-Hub-Signature-256": f"sha256={digest}",
    }


def mode(file: Path) -> int:
    return file.stat().st_mode & 0o777


def one_sentence(stderr: str) -> str:
    """What a fault of the command line says: one line, nothing of the machinery."""
    assert stderr.startswith("agentfleet: ")
    assert stderr.count("\n") == 1
    assert "Traceback" not in stderr
    return stderr.removeprefix("agentfleet: ").strip()


# --- up and down ------------------------------------------------------------------------------------------------


def test_up_says_where_it_serves_and_keeps_its_files_to_itself(box: Box) -> None:
    where = re.search(r"^agentfleet is up at (http://127\.0\.0\.1:\d+)$", box.said, re.MULTILINE)
    assert where is not None
    assert private_files.read_json(box.home / "client.json")["url"] == where[1]
    assert re.search(rf"^log in once with {where[1]}/login/\S+$", box.said, re.MULTILINE)
    assert "outside" not in box.said
    assert mode(box.home) == 0o700
    assert mode(box.home / "client.json") == 0o600
    assert box.pids().keys() == ROLES
    assert all(background.started_at(pid) for pid in box.pids().values())


def test_a_second_up_on_the_same_home_is_refused(box: Box) -> None:
    log = (box.home / "up.log").read_text()
    pids = box.pids()
    for words in (["up", "--port", "0"], ["up", "--port", "0", "--detach"]):
        refused = box.cli(*words, check=False)
        assert refused.returncode == 1
        assert one_sentence(refused.stderr) == f"agentfleet is already up for {box.home} ({box.client.url})"
    assert box.pids() == pids
    assert (box.home / "up.log").read_text().startswith(log)
    assert httpx.get(f"{box.client.url}/healthz").status_code == 200


def test_a_run_in_a_command_survives_down_and_up(box: Box) -> None:
    run_id = box.start("slow")
    box.until(lambda: "line 3" in box.output(run_id))
    children = box.pids()
    assert box.cli("down").stdout == "agentfleet is down\n"
    assert [name for name, pid in children.items() if background.started_at(pid)] == []
    assert not (box.home / "client.json").exists()
    assert box.cli("down").stdout == f"nothing is up for {box.home}\n"
    box.up()
    assert box.wait(run_id)["output"] == "Counted.", box.story(run_id)
    assert box.output(run_id) == LINES
    box.until(lambda: standing(run_id) == [])


def test_dead_processes_are_started_again_and_a_follower_misses_no_line(box: Box) -> None:
    before = box.pids()
    run_id = box.start("slow")
    argv = [sys.executable, "-m", "agentfleet", "logs", "-f", "--json", run_id]
    with subprocess.Popen(argv, env=box.env, stdout=subprocess.PIPE, text=True) as follower:
        assert follower.stdout is not None
        said = [follower.stdout.readline()]  # it follows: before that, a server that is away ends it at once
        box.until(lambda: "line 2" in box.output(run_id))
        for role in ("web", "beat", "redis"):
            kill(before[role])
        said += follower.stdout.readlines()
        assert follower.wait(10) == 0
    followed = [json.loads(line) for line in said]
    assert [event["id"] for event in followed] == list(range(1, len(followed) + 1))
    assert "".join(event["data"]["text"] for event in followed if event["type"] == "output") == LINES
    now = box.until(lambda: box.pids().keys() == ROLES and box.pids())
    assert {role for role in ROLES if now[role] != before[role]} == {"web", "beat", "redis"}
    assert all(background.started_at(pid) for pid in now.values())
    assert "web ended (-9); started again" in (box.home / "up.log").read_text()


def test_killing_the_supervisor_ends_its_children_and_the_next_up_works(box: Box) -> None:
    pids = box.pids()
    kill(pids["supervisor"])
    box.until(lambda: not any(background.started_at(pid) for pid in pids.values()))
    doctor = box.cli("doctor", "--port", str(ports.free_port()), check=False)
    assert doctor.returncode == 1
    assert "WRONG  processes    agentfleet ended without being told to: run `agentfleet up`" in doctor.stdout
    box.up()
    assert box.pids().keys() == ROLES
    assert box.wait(box.start("quick"))["output"] == "done"


def test_a_port_in_use_is_said_and_nothing_is_started(tmp_path: Path) -> None:
    box = Box(tmp_path)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = box.cli("up", "--port", str(port), "--detach", check=False)
    assert refused.returncode == 1
    sentence = f"port {port} on 127.0.0.1 is in use: stop what listens there, or choose another --port"
    assert one_sentence(refused.stderr) == sentence
    assert not (box.home / "client.json").exists()
    assert not (box.home / "pids.json").exists()


def test_down_leaves_a_process_alone_that_is_not_this_homes(box: Box, tmp_path: Path) -> None:
    def down_of(name: str, claims: dict[str, Any]) -> str:
        home = tmp_path / name
        home.mkdir(mode=0o700)
        private_files.write_json(home / "up.json", claims)
        return box.cli("down", "--home", str(home)).stdout

    with subprocess.Popen(["sleep", "600"]) as foreign:
        try:
            begun = background.started_at(foreign.pid)
            assert begun is not None
            taken_over = {"pid": foreign.pid, "started": begun - 1}
            assert "nothing is up" in down_of("old", taken_over)
            assert foreign.poll() is None
        finally:
            foreign.kill()
    pids = box.pids()
    assert "nothing is up" in down_of("copy", private_files.read_json(box.home / "up.json"))
    assert background.started_at(pids["supervisor"])
    assert box.pids() == pids


def test_the_processes_of_a_box_keep_few_heaps(box: Box) -> None:
    environments = {name: Path(f"/proc/{pid}/environ").read_bytes() for name, pid in box.pids().items()}
    told = {name for name, environment in environments.items() if b"MALLOC_ARENA_MAX=2" in environment.split(b"\0")}
    assert told >= {"web", "worker", "beat", "gateway"}


def test_all_is_well_says_the_doctor(box: Box) -> None:
    told = box.cli("doctor", "--json", check=False)
    checks = {check["name"]: check for check in json.loads(told.stdout)}
    assert [check for check in checks.values() if not check["ok"]] == []
    assert told.returncode == 0
    assert checks["port"]["says"] == f"{box.client.url} is served by this home's agentfleet"
    assert checks["processes"]["says"] == "web, worker, beat, gateway are alive"
    assert re.fullmatch(r"heard of \d+ s ago", checks["worker"]["says"])
    assert "agentfleet-sandbox:latest, made 20" in checks["image"]["says"]
    assert checks["model keys"]["says"] == "scripted: there"


# --- the door ---------------------------------------------------------------------------------------------------


def test_a_login_link_logs_in_once(box: Box) -> None:
    link = box.cli("login").stdout.strip()
    with httpx.Client(follow_redirects=True) as browser:
        landed = browser.get(link)
        assert (landed.status_code, landed.url.path) == (200, "/admin/")
        assert browser.get(f"{box.client.url}/admin/runs/run/").status_code == 200
    with httpx.Client(follow_redirects=True) as late:
        assert late.get(link).status_code == 403
        assert late.get(f"{box.client.url}/admin/").url.path == "/admin/login/"


@pytest.mark.parametrize("password", ["", "admin", "password", "agentfleet"])
def test_the_operator_has_no_password_to_guess(box: Box, stranger: httpx.Client, password: str) -> None:
    assert stranger.get("/admin/").headers["location"].startswith("/admin/login/")
    page = stranger.get("/admin/login/")
    token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', page.text)
    assert token is not None
    form = {"username": "admin", "password": password, "csrfmiddlewaretoken": token[1], "next": "/admin/"}
    answer = stranger.post("/admin/login/", data=form, headers={"Referer": str(page.url)})
    assert answer.status_code == 200  # the form again
    assert "sessionid" not in stranger.cookies
    assert box.rows("SELECT username FROM auth_user WHERE password NOT LIKE '!%'") == []


def test_a_page_of_another_site_opens_no_websocket(box: Box) -> None:
    run_id = box.start("quick")
    box.wait(run_id)
    with httpx.Client(follow_redirects=True) as browser:
        browser.get(box.cli("login").stdout.strip())
        cookies = {"Cookie": f"sessionid={browser.cookies['sessionid']}"}
    own = Origin(box.client.url)
    address = f"{own.replace('http', 'ws', 1)}/ws/runs/{run_id}/"
    with connect(address, origin=own, additional_headers=cookies) as opened:
        opened.send('{"after": 0}')
        assert json.loads(opened.recv())["events"][0]["id"] == 1
    refused_ones: list[tuple[Origin | None, dict[str, str]]] = [
        (Origin("http://evil.example"), cookies),
        (None, cookies),
        (own, {}),
    ]
    for origin, headers in refused_ones:
        with pytest.raises(InvalidStatus) as refused, connect(address, origin=origin, additional_headers=headers):
            pass
        assert refused.value.response.status_code == 403


# --- REST -------------------------------------------------------------------------------------------------------


def test_a_task_from_its_beginning_to_its_deletion(box: Box, http: httpx.Client) -> None:
    made = http.post("/api/v1/agents/dev/task", json={"input": "go", "tags": ["a"], "priority": "high"})
    assert made.status_code == 202
    run_id = made.json()["taskId"]
    assert made.json() == {"taskId": run_id, "status": "pending"}
    task = box.wait(run_id)
    assert (task["status"], task["output"], task["iterations"]) == ("finished", "It said hello.", 2)
    assert (task["tags"], task["priority"], task["trigger"]) == (["a"], "high", "api")

    listed = http.get("/api/v1/tasks", params={"agentName": "dev", "status": "finished", "limit": 1}).json()
    assert [row["id"] for row in listed["tasks"]] == [run_id]
    events = http.get(f"/api/v1/tasks/{run_id}/events", params={"since": 2}).json()["events"]
    assert [event["id"] for event in events] == list(range(3, task["eventCount"] + 1))
    context = http.get(f"/api/v1/tasks/{run_id}/context").json()["context"]
    roles = [message["role"] for message in context["messages"]]
    assert roles[-3:] == ["assistant", "tool", "assistant"]
    assert context["messages"][-2]["content"] == "hello\n"

    assert http.delete(f"/api/v1/tasks/{run_id}").json() == {"deleted": True, "taskId": run_id}
    for path in ("", "/events", "/stream", "/context"):
        gone = http.get(f"/api/v1/tasks/{run_id}{path}")
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "TASK_NOT_FOUND")
    box.until(lambda: standing(run_id) == [])
    box.until(lambda: box.rows("SELECT 1 FROM runs_run WHERE id = ?", run_id) == [])


def test_a_running_task_is_deleted_only_by_force(box: Box, http: httpx.Client) -> None:
    run_id = box.start("sleeper")
    box.until(lambda: "asleep" in box.output(run_id))
    refused = http.delete(f"/api/v1/tasks/{run_id}")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "TASK_ACTIVE")
    assert http.delete(f"/api/v1/tasks/{run_id}", params={"force": "true"}).status_code == 200
    assert http.get(f"/api/v1/tasks/{run_id}").status_code == 404
    box.until(lambda: box.rows("SELECT 1 FROM runs_run WHERE id = ?", run_id) == [])
    assert standing(run_id) == []


TASK = "/api/v1/agents/quick/task"
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "code"),
    [
        (TASK, b"{", JSON, 400, "VALIDATION_ERROR"),
        (TASK, b"[]", JSON, 400, "VALIDATION_ERROR"),
        (TASK, b"", JSON, 400, "VALIDATION_ERROR"),
        (TASK, b'{"input": "go", "inptu": 1}', JSON, 400, "VALIDATION_ERROR"),
        (TASK, b'{"input": {"text": "go"}}', JSON, 400, "VALIDATION_ERROR"),
        (TASK, b'{"input": "go", "maxIterations": -1}', JSON, 400, "VALIDATION_ERROR"),
        (TASK, b"[" * 100_000, JSON, 400, "VALIDATION_ERROR"),
        (TASK, b"input=go", {"Content-Type": "application/x-www-form-urlencoded"}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        (TASK, b'{"input": "go"}', {"Content-Type": "text/plain"}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("/api/v1/agents/nobody/task", b'{"input": "go"}', JSON, 404, "AGENT_NOT_FOUND"),
        ("/api/v1/agents/no-tasks/task", b'{"input": "go"}', JSON, 400, "MODE_NOT_SUPPORTED"),
        ("/api/v1/tasks/run_nosuch/respond", b'{"message": "m"}', JSON, 404, "TASK_NOT_FOUND"),
        ("/api/v1/tasks/run_nosuch/cancel", b"", JSON, 404, "TASK_NOT_FOUND"),
        ("/api/v1/agents/quick", b"{}", JSON, 405, "METHOD_NOT_ALLOWED"),
    ],
)
def test_a_request_that_makes_no_sense_starts_nothing(
    box: Box, http: httpx.Client, path: str, body: bytes, headers: dict[str, str], status: int, code: str
) -> None:
    count = box.rows("SELECT count(*) FROM runs_run WHERE \"trigger\" = 'api'")
    answer = http.post(path, content=body, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
    assert answer.json()["error"]["message"]
    assert box.rows("SELECT count(*) FROM runs_run WHERE \"trigger\" = 'api'") == count


@pytest.mark.parametrize("path", ["tasks", "tasks/run_x", "tasks/run_x/stream", "agents", "agents/quick"])
@pytest.mark.parametrize("header", [None, "Bearer nonsense", "Bearer", "Basic YWRtaW46YWRtaW4=", "Bearer \u00fc"])
def test_nobody_reads_without_a_token(stranger: httpx.Client, path: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode()}
    answer = stranger.get(f"/api/v1/{path}", headers=headers)  # type: ignore[arg-type]
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "UNAUTHORIZED")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_an_idempotency_key_starts_one_task(http: httpx.Client) -> None:
    key = {"Idempotency-Key": secrets.token_hex(8)}
    first = http.post(TASK, json={"input": "go"}, headers=key)
    again = http.post(TASK, json={"input": "go"}, headers=key)
    other = http.post(TASK, json={"input": "stop"}, headers=key)
    assert (first.status_code, again.status_code, other.status_code) == (202, 200, 409)
    assert again.json()["taskId"] == first.json()["taskId"]
    assert other.json()["error"]["code"] == "IDEMPOTENCY_KEY_REUSED"
    assert first.json()["taskId"] in other.json()["error"]["message"]


@pytest.mark.parametrize(
    ("agent", "limit", "code"),
    [
        ("wordy", {"maxIterations": 2}, "MAX_ITERATIONS"),
        ("wordy", {"tokenBudget": 1}, "BUDGET_EXCEEDED"),
        ("sleeper", {"maxDurationSeconds": 2}, "TIMEOUT"),
    ],
)
def test_a_task_has_limits_of_its_own(box: Box, agent: str, limit: dict[str, Any], code: str) -> None:
    run_id = box.start(agent, **limit)
    task = box.wait(run_id)
    assert (task["status"], task["error"]["code"]) == ("failed", code), box.story(run_id)
    if agent == "wordy":
        assert box.wait(box.start(agent, maxIterations=3))["output"] == "after three turns"
    box.until(lambda: standing(run_id) == [])


def read_stream(http: httpx.Client, run_id: str, *, after: int = 0, until: str = "") -> list[tuple[str, str, Any]]:
    """Messages of a task's event stream as (id, event, data), to its end or to the first that shows `until`."""
    found = []
    headers = {"Last-Event-ID": str(after)} if after else {}
    with http.stream("GET", f"/api/v1/tasks/{run_id}/stream", headers=headers) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        text = ""
        for piece in answer.iter_text():
            *messages, text = (text + piece).split("\n\n")
            for message in messages:
                fields = dict(line.split(": ", 1) for line in message.split("\n") if not line.startswith(":"))
                if fields:
                    found.append((fields.get("id", ""), fields["event"], json.loads(fields["data"])))
                if until and until in message:
                    return found
    return found


def test_a_stream_that_broke_goes_on_where_it_was_and_a_late_one_is_the_same(box: Box, http: httpx.Client) -> None:
    run_id = box.start("slow")
    begun = read_stream(http, run_id, until="line 4")
    first = [message for message in begun if message[1] == "task"]
    rest = read_stream(http, run_id, after=int(first[-1][0]))
    late = read_stream(http, run_id)
    live = first + [message for message in rest if message[1] == "task"]
    assert live == [message for message in late if message[1] == "task"]
    assert [int(number) for number, _, _ in live] == list(range(1, len(live) + 1))
    assert [data for _, _, data in live] == box.events(run_id)
    assert "".join(data["data"]["text"] for _, _, data in live if data["type"] == "output") == LINES
    states = [data["status"] for _, kind, data in late if kind == "status"]
    assert states == ["finished"]
    assert late[-1][1] == "status"
    assert [kind for _, kind, _ in rest].count("status") == 1


# --- webhooks ---------------------------------------------------------------------------------------------------


def deliveries(box: Box) -> int:
    count: int = box.rows("SELECT count(*) FROM webhooks_delivery")[0][0]
    return count


def refusals(box: Box) -> int:
    count: int = box.rows("SELECT refused_count FROM webhooks_source WHERE name = 'github'")[0][0]
    return count


def test_a_signed_webhook_starts_a_run_for_every_agent_that_matches(box: Box, stranger: httpx.Client) -> None:
    body = issue()
    said = stranger.post("/webhooks/github", content=body, headers=signed(body)).json()
    assert (said["ok"], said["matched"], said["skipped"], len(said["runs"])) == (True, 2, 0, 2)
    assert [box.wait(run_id)["output"] for run_id in said["runs"]] == ["Seen.", "Seen."]
    again = stranger.post("/webhooks/github", content=body, headers=signed(body)).json()
    assert (again["matched"], again["duplicate"], set(again["runs"])) == (0, True, set(said["runs"]))


def test_a_webhook_tells_what_it_skipped_and_keeps_what_matched_nothing(box: Box, stranger: httpx.Client) -> None:
    box.client.call("POST", "agents/on-issue-too/pause")
    try:
        body = issue()
        said = stranger.post("/webhooks/github/github", content=body, headers=signed(body)).json()
        assert (said["matched"], said["skipped"], len(said["runs"])) == (1, 1, 1)
    finally:
        box.client.call("POST", "agents/on-issue-too/resume")
    body = issue(action="closed")
    said = stranger.post("/webhooks/github", content=body, headers=signed(body)).json()
    assert said == {"ok": True, "matched": 0, "skipped": 0, "runs": []}
    kept = box.rows("SELECT reason FROM webhooks_delivery ORDER BY id DESC LIMIT 1")
    assert kept == [("no trigger matches",)]


@pytest.mark.parametrize("signature", ["", "sha256=", "sha256=" + 64 * "0", "of another secret", "sha1"])
def test_of_an_unsigned_webhook_only_the_number_is_kept(box: Box, stranger: httpx.Client, signature: str) -> None:
    body = issue()
    headers = signed(body)
    if signature == "of another secret":
        headers = signed(body, "guessed")
    elif signature == "sha1":
        headers["X-Hub-Signature"] = headers.pop("X-Hub-Signature-256").replace("sha256", "sha1")
    else:
        headers["X-Hub-Signature-256"] = signature
    kept, counted = deliveries(box), refusals(box)
    answer = stranger.post("/webhooks/github", content=body, headers=headers)
    assert (answer.status_code, answer.json()) == (401, {"error": "signature validation failed"})
    assert deliveries(box) == kept
    box.until(lambda: refusals(box) == counted + 1)  # written when somebody looks at what was counted


def test_a_signed_webhook_that_is_not_json_is_refused_and_kept(box: Box, stranger: httpx.Client) -> None:
    kept = deliveries(box)
    answer = stranger.post("/webhooks/github", content=b"{no", headers=signed(b"{no"))
    assert (answer.status_code, answer.json()) == (400, {"error": "invalid JSON body"})
    form = {**signed(b"payloud=%7B%7D"), "Content-Type": "application/x-www-form-urlencoded"}
    answer = stranger.post("/webhooks/github", content=b"payloud=%7B%7D", headers=form)
    assert (answer.status_code, answer.json()) == (400, {"error": "missing payload in form body"})
    assert deliveries(box) == kept + 2


def test_a_webhook_of_a_form_or_in_chunks_is_read(stranger: httpx.Client) -> None:
    body = issue()
    pieces = (body[start : start + 1000] for start in range(0, len(body), 1000))
    said = stranger.post("/webhooks/github", content=pieces, headers=signed(body))
    assert (said.status_code, said.json()["matched"]) == (200, 2)
    form = httpx.QueryParams({"payload": issue().decode()})
    headers = {**signed(str(form).encode()), "Content-Type": "application/x-www-form-urlencoded"}
    said = stranger.post("/webhooks/github", content=str(form).encode(), headers=headers)
    assert (said.status_code, said.json()["matched"]) == (200, 2)


def test_a_webhook_that_is_too_large_is_not_stored(box: Box, stranger: httpx.Client) -> None:
    body = issue(padding="x" * 11 * MIB)
    kept = deliveries(box)
    answer = stranger.post("/webhooks/github", content=body, headers=signed(body))
    assert (answer.status_code, answer.json()) == (413, {"error": "payload too large"})
    pieces = (body[start : start + MIB] for start in range(0, len(body), MIB))
    answer = stranger.post("/webhooks/github", content=pieces, headers=signed(body))
    assert (answer.status_code, answer.json()) == (413, {"error": "payload too large"})
    assert deliveries(box) == kept


def test_webhooks_are_posted_and_to_sources_that_are_known(stranger: httpx.Client) -> None:
    body = issue()
    assert stranger.get("/webhooks/github").status_code == 405
    for path in ("nosuch", "github/nosuch"):
        answer = stranger.post(f"/webhooks/{path}", content=body, headers=signed(body))
        assert (answer.status_code, answer.json()) == (404, {"error": "unknown webhook source: nosuch"})


def test_bodies_that_drip_hold_no_thread(box: Box, stranger: httpx.Client) -> None:
    address = httpx.URL(box.client.url)
    head = f"POST /webhooks/github HTTP/1.1\r\nHost: {address.netloc.decode()}\r\nContent-Length: 1000\r\n\r\n{{"
    with contextlib.ExitStack() as open_ones:
        for _ in range(40):  # more than there are threads
            dripping = open_ones.enter_context(socket.create_connection((address.host, address.port or 80)))
            dripping.sendall(head.encode())
        began = time.monotonic()
        body = issue()
        assert stranger.post("/webhooks/github", content=body, headers=signed(body)).status_code == 200
        assert time.monotonic() - began < 10


# --- schedules --------------------------------------------------------------------------------------------------


def test_a_schedule_fires_and_beat_has_its_mirror(box: Box, tmp_path: Path) -> None:
    project = tmp_path / "clockwork"
    schedules = {"ticker": "*/2 * * * * *", "minutely": "* * * * *"}
    for name, schedule in schedules.items():
        write_agent(project, name, f'schedule = "{schedule}"\n')
    box.cli("apply", str(project))
    try:
        fired = "SELECT r.scheduled_for, r.status FROM runs_run r JOIN agents_agent a ON a.id = r.agent_id"
        fired += " WHERE a.name = 'ticker' AND \"trigger\" = 'schedule' AND r.status = 'finished'"
        ticks = box.until(lambda: len(found := box.rows(fired)) >= 2 and found)
        times = [tick for tick, _ in ticks]
        assert len(set(times)) == len(times)
        assert all(int(tick[17:19]) % 2 == 0 for tick in times)
        mirrored = "SELECT p.name, c.minute, c.timezone, p.enabled FROM django_celery_beat_periodictask p"
        mirrored += " JOIN django_celery_beat_crontabschedule c ON c.id = p.crontab_id WHERE p.name LIKE 'default/%'"
        assert box.rows(mirrored) == [("default/minutely", "*", "UTC", 1)]
        assert background.started_at(box.pids()["beat"])
        told = {check["name"]: check["says"] for check in json.loads(box.cli("doctor", "--json").stdout)}
        assert told["schedules"].startswith("2 agents have one; next is ticker at 20")
    finally:
        for name in schedules:
            box.cli("pause", name)


def test_a_fleet_that_is_paused_says_so_until_it_is_resumed(box: Box) -> None:
    try:
        assert box.cli("pause").stdout.strip() == "the fleet is paused"
        refused = box.cli("run", "dev", check=False)
        assert (refused.returncode, refused.stderr.strip()) == (1, "agentfleet: the fleet is paused")
    finally:
        assert box.cli("resume").stdout.strip() == "the fleet takes work again"
    assert box.cli("run", "dev").stdout.startswith("run_")


def write_agent(project: Path, name: str, config: str, *, script: str = "turns: [{text: done}]") -> None:
    folder = project / "agents" / name
    folder.mkdir(parents=True, exist_ok=True)
    models = '[models.script]\nprovider = "scripted"\nmodel = "script.yaml"\n'
    (project / "config.toml").write_text(models)
    (folder / "SKILL.md").write_text("Do it.\n")
    (folder / "config.toml").write_text(f'kind = "model"\nmodels = ["script"]\n{NO_SANDBOX}{config}')
    (folder / "script.yaml").write_text(script)


# --- the command line -------------------------------------------------------------------------------------------


def test_a_question_is_answered_from_the_command_line(box: Box) -> None:
    run_id = box.cli("run", "asker").stdout.strip()
    task = box.wait(run_id, "waiting")
    assert (task["wait_reason"], task["question"]) == ("input", "Left or right?")
    row = next(line for line in box.cli("ps").stdout.splitlines() if run_id in line)
    assert "waiting (input)" in row
    assert "Left or right?" in row
    assert box.cli("respond", run_id, "left, please").stdout == f"{run_id} goes on\n"
    assert box.wait(run_id)["output"] == "Went left."
    late = box.cli("respond", run_id, "right", check=False)
    assert (late.returncode, one_sentence(late.stderr)) == (1, f"task {run_id} waits for no answer")


def test_run_follow_shows_what_happens_and_exits_with_its_outcome(box: Box) -> None:
    good = box.cli("run", "dev", "-f")
    assert "  hello\n" in good.stdout
    assert good.stdout.count("It said hello.") == 1
    bad = box.cli("run", "broken", "-f", check=False)
    assert bad.returncode == 1
    assert "SCRIPT_ENDED: script.yaml has 0 turns" in bad.stdout


def test_ps_and_logs_tell_of_runs(box: Box) -> None:
    run_id = box.start("quick")
    box.wait(run_id)
    assert run_id not in box.cli("ps").stdout
    every = {task["id"]: task for task in json.loads(box.cli("ps", "--all", "--json").stdout)}
    assert {**every[run_id], "pending_inputs": 0} == box.task(run_id)  # lists do not count those
    assert run_id in box.cli("ps", "--all").stdout
    stored = box.events(run_id)
    for words in (["logs", "--json"], ["logs", "-f", "--json"]):
        assert [json.loads(line) for line in box.cli(*words, run_id).stdout.splitlines()] == stored
    assert box.cli("logs", run_id).stdout.splitlines()[-1].endswith("finished")


def test_ps_shows_what_waits_however_many_came_later(box: Box, http: httpx.Client) -> None:
    waiting = box.start("asker")
    box.wait(waiting, "waiting")
    later = [box.start("busy") for _ in range(101)]
    try:
        listed = [task["id"] for task in json.loads(box.cli("ps", "--json").stdout)]
        assert [run_id for run_id in listed if run_id in {waiting, *later}] == [*reversed(later), waiting]
    finally:
        for run_id in [*reversed(later), waiting]:
            assert http.post(f"/api/v1/tasks/{run_id}/cancel").status_code == 200


def test_a_canceled_command_is_gone_with_all_that_belongs_to_it(box: Box) -> None:
    run_id = box.start("sleeper")
    box.until(lambda: "asleep" in box.output(run_id))
    assert len(standing(run_id)) == 2
    began = time.monotonic()
    assert box.cli("cancel", run_id).stdout == f"{run_id} is being canceled\n"
    assert box.wait(run_id)["status"] == "canceled"
    assert time.monotonic() - began < 5 + 10 + 5  # to hear of it, TERM's grace, and a busy machine
    box.until(lambda: standing(run_id) == [])
    again = box.cli("cancel", run_id, check=False)
    assert (again.returncode, one_sentence(again.stderr)) == (1, f"task {run_id} is over already")


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["run", "nobody"], 1, "there is no agent 'nobody'"),
        (["logs", "run_nosuch"], 1, "there is no task 'run_nosuch'"),
        (["logs", "-f", "run_nosuch"], 1, "there is no task 'run_nosuch'"),
        (["cancel", "run_nosuch"], 1, "there is no task 'run_nosuch'"),
    ],
)
def test_a_fault_of_the_command_line_is_a_sentence(box: Box, words: list[str], code: int, sentence: str) -> None:
    done = box.cli(*words, check=False)
    assert (done.returncode, one_sentence(done.stderr), done.stdout) == (code, sentence, "")


@pytest.mark.parametrize("words", [["ps"], ["logs", "-f", "run_x"]])
def test_without_a_server_commands_exit_3(tmp_path: Path, words: list[str]) -> None:
    done = Box(tmp_path).cli(*words, check=False)
    assert done.returncode == 3
    assert one_sentence(done.stderr).startswith(f"agentfleet is not up for {tmp_path}/home: run `agentfleet up`")
    gone = Box(tmp_path, AGENTFLEET_URL=f"http://127.0.0.1:{ports.free_port()}", AGENTFLEET_TOKEN="t")
    done = gone.cli(*words, check=False)
    assert done.returncode == 3
    assert "does not answer" in one_sentence(done.stderr)


def test_a_companys_proxy_is_not_asked_for_this_machine(box: Box) -> None:
    nobody = f"http://127.0.0.1:{ports.free_port()}"
    env = {**box.env, "HTTP_PROXY": nobody, "http_proxy": nobody, "ALL_PROXY": nobody}
    argv = [sys.executable, "-m", "agentfleet", "ps", "--json"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_broken_folder_is_told_whole_and_nothing_of_it_applied(box: Box, tmp_path: Path) -> None:
    project = tmp_path / "broken-project"
    write_agent(project, "fine", "")
    write_agent(project, "typo", "shedule = '0 * * * *'\n")
    write_agent(project, "wrong", "scale = 'many'\nschedule = '99 * * * *'\n")
    refused = box.cli("apply", str(project), check=False)
    assert refused.returncode == 1
    first, *faults = refused.stderr.strip().splitlines()
    assert first == "agentfleet: nothing was applied:"
    assert [fault.split(": ")[0].strip() for fault in faults] == [
        "agents/typo/config.toml:4",
        "agents/wrong/config.toml:4",
        "agents/wrong/config.toml:5",
    ]
    assert "did you mean schedule?" in faults[0]
    names = {agent["name"] for agent in box.client.call("GET", "agents")["agents"]}
    assert names.isdisjoint({"fine", "typo", "wrong"})


def test_apply_makes_the_rows_match_the_folder(box: Box, tmp_path: Path) -> None:
    project = tmp_path / "garden"
    write_agent(project, "rose", "")
    write_agent(project, "tulip", "")
    assert box.cli("apply", str(project)).stdout == "created agent rose\ncreated agent tulip\n"
    assert box.cli("apply", str(project)).stdout == "unchanged: rose, tulip\n"
    for file in (project / "agents" / "tulip").iterdir():
        file.unlink()
    (project / "agents" / "tulip").rmdir()
    write_agent(project, "rose", "scale = 2\n")
    assert box.cli("apply", str(project)).stdout == "updated agent rose\ndeactivated agent tulip\n"
    refused = box.cli("run", "tulip", check=False)
    assert (refused.returncode, one_sentence(refused.stderr)) == (1, "agent tulip is no longer in its project")
    assert box.wait(box.start("rose"))["output"] == "done"
    assert box.wait(box.start("quick"))["output"] == "done"  # another project's


# --- what breaks around it --------------------------------------------------------------------------------------


def test_a_missing_image_fails_the_run_and_not_the_worker(box: Box, tmp_path: Path) -> None:
    project = tmp_path / "images"
    script = 'turns: [{tools: [{name: bash, arguments: {command: "echo hello"}}]}, {text: done}]'
    write_agent(project, "picture", "", script=script)
    config = project / "agents" / "picture" / "config.toml"
    without = config.read_text().replace(NO_SANDBOX, "")
    config.write_text(f'{without}image = "agentfleet-no-such-image:1"\n')
    box.cli("apply", str(project))
    worker = box.pids()["worker"]
    task = box.wait(box.start("picture"))
    assert (task["status"], task["error"]["code"]) == ("failed", "IMAGE_MISSING")
    assert "No such image: agentfleet-no-such-image:1" in task["error"]["message"]
    config.write_text(without)
    box.cli("apply", str(project))
    assert box.wait(box.start("picture"))["output"] == "done"
    assert box.pids()["worker"] == worker


def test_a_webhook_is_acknowledged_while_redis_hangs_and_its_run_finishes(box: Box, stranger: httpx.Client) -> None:
    redis = box.pids()["redis"]
    os.kill(redis, signal.SIGSTOP)
    try:
        for _ in range(3):
            assert_acknowledged_and_finished(box, stranger)
    finally:
        os.kill(redis, signal.SIGCONT)
    assert box.wait(box.start("quick"))["output"] == "done"


def test_a_webhook_is_acknowledged_while_redis_is_dead_and_its_run_finishes(crippled: Box) -> None:
    assert "redis" not in crippled.until(lambda: "redis" not in (pids := crippled.pids()) and pids)
    with httpx.Client(base_url=crippled.client.url) as stranger:
        assert_acknowledged_and_finished(crippled, stranger)
    assert "redis" not in crippled.pids()
    assert "redis ended (-9) and stays down" in (crippled.home / "up.log").read_text()


def assert_acknowledged_and_finished(box: Box, stranger: httpx.Client) -> None:
    body = issue()
    began = time.monotonic()
    answer = stranger.post("/webhooks/github", content=body, headers=signed(body))
    assert time.monotonic() - began < 1.0
    assert answer.json()["matched"] >= 1
    assert [box.wait(run_id)["output"] for run_id in answer.json()["runs"]] == ["Seen."] * answer.json()["matched"]


def test_listening_beyond_this_machine_is_said_aloud(crippled: Box) -> None:
    port = httpx.URL(crippled.client.url).port
    sentence = f"listening on 0.0.0.0:{port}: the admin, the API and webhooks can be reached from outside"
    assert sentence in crippled.said.splitlines()


def test_without_an_engine_a_run_waits_and_the_worker_lives(crippled: Box) -> None:
    worker = crippled.pids()["worker"]
    run_id = crippled.start("dev")
    assert crippled.wait(run_id, "waiting")["wait_reason"] == "retry"
    pause = next(event["data"] for event in crippled.events(run_id) if event["type"] == "pause")
    assert pause["code"] == "ENGINE_DOWN"
    assert "the container engine does not answer" in pause["message"]
    assert "No such file or directory" in pause["message"]
    crippled.client.call("POST", f"tasks/{run_id}/cancel")
    assert crippled.wait(run_id)["status"] == "canceled"
    assert crippled.pids()["worker"] == worker


def test_the_doctor_says_what_is_wrong_and_what_to_do(crippled: Box) -> None:
    told = crippled.cli("doctor", check=False)
    assert told.returncode == 1
    wrong = {line.split()[1]: line for line in told.stdout.splitlines() if line.startswith("WRONG")}
    assert wrong.keys() == {"engine", "image", "redis"}
    assert wrong["engine"].endswith(": start the engine, or set DOCKER_HOST")
    assert "it does not answer" in wrong["redis"]


@pytest.mark.django_db
def test_what_was_committed_survives_a_power_cut() -> None:
    as_settings_say = connection.copy("as settings say")
    with contextlib.closing(as_settings_say), as_settings_say.cursor() as cursor:
        assert cursor.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert cursor.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL


# --- the demo ---------------------------------------------------------------------------------------------------

DEMO = [sys.executable, str(ROOT / "examples" / "demo.py")]


def test_the_demo_runs_an_issue_to_its_answer_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(DEMO, env=demo_env(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("Triaged Codertocat/Hello-World#1:") == 1
    assert "checked: accidentally" in done.stdout
    assert_nothing_left(tmp_path, done.stdout)


def test_the_demo_interrupted_leaves_nothing(tmp_path: Path) -> None:
    with subprocess.Popen(
        ["env", "--default-signal=INT", *DEMO],  # a shell's background jobs are started with it ignored
        env=demo_env(tmp_path),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as demo:
        assert demo.stdout is not None
        said = ""
        for line in demo.stdout:
            said += line
            if "checked:" in line:  # in the middle of a command
                os.killpg(demo.pid, signal.SIGINT)  # as a terminal sends it: to all of them
                break
        said += demo.stdout.read()
        assert demo.wait(60) == 130, said
    assert "Traceback" not in said
    assert_nothing_left(tmp_path, said)


def demo_env(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "tmp").mkdir()
    return {**os.environ, "TMPDIR": str(tmp_path / "tmp"), "PYTHONUNBUFFERED": "1"}


def assert_nothing_left(tmp_path: Path, said: str) -> None:
    """No file, no container or volume, and no process that knows the demo's home."""
    assert list((tmp_path / "tmp").glob("agentfleet*")) == []
    runs = set(re.findall(r"run_[0-9a-z]+", said))
    assert len(runs) == 1
    assert [name for run_id in runs for name in standing(run_id)] == []
    needle = b"AGENTFLEET_HOME=" + os.fsencode(tmp_path / "tmp")
    assert [file for file in Path("/proc").glob("[0-9]*/environ") if needle in environ(file)] == []


def environ(file: Path) -> bytes:
    with contextlib.suppress(OSError):
        return file.read_bytes()
    return b""
