"""Messages to others about runs: made with the change they tell of, signed, sent until they are taken."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import pytest
from django.conf import LazySettings
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse

from agents import clock
from agents.credentials import Reference
from agents.credentials.files import FileStore
from agents.ids import first_id
from agents.manifest import Faulty, Reading, export, parse
from agents.models import ApiToken, Workspace
from agents.redaction import Redactor
from runs import alerts, events, lifecycle, outgoing, outgoing_sender
from runs.models import Alert, Outgoing, OutgoingMessage, Run, Status
from runs.outgoing_bodies import PAGE, cause_of
from runs.outgoing_sender import PAUSES, PER_RECEIVER, TAKEN, Sender
from tests.conftest import DrivenClock, DrivenWorker, until
from tests.making import ask, make_agent, make_workspace, submit
from tests.test_indexes import whole_tables_read
from webhooks import projects
from webhooks.providers import PROVIDERS
from webhooks.providers.base import Event, Request

pytestmark = pytest.mark.django_db(transaction=True)

KEYS = [b"a key of twenty-four byt", b"an older key of 24 bytes"]
SECRETS = [f"whsec_{base64.b64encode(key).decode()}" for key in KEYS]


class Receiver:
    """Somebody's server: remembers what it was sent, and answers with what is next in `answers`, else with `status`."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        self.status = 204
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(receiver.answers.pop(0) if receiver.answers else receiver.status)
                self.send_header("Location", "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name it is called with
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook/not-for-logs"

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, body in self.got]

    @property
    def types(self) -> list[str]:
        return [body["type"] for body in self.bodies]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture(autouse=True)
def home(tmp_path: Path, settings: LazySettings) -> Path:
    settings.HOME = tmp_path
    settings.PUBLIC_URL = "https://fleet.example.org/"
    return tmp_path


def keep(home: Path, instance: str = "ops", **values: str) -> None:
    FileStore(home / "credentials").put(Reference("outgoing_webhook", instance), values)


def make_outgoing(url: str, name: str = "ops", **changes: Any) -> Outgoing:
    return Outgoing.objects.create(workspace=make_workspace(), name=name, url=url, project="shop", **changes)


def send(sender: Sender | None = None) -> None:
    """Look until nothing is under way."""
    sender = sender or Sender(stopping=threading.Event())
    sender.look()
    while sender.under_way:
        until(lambda: sender.answers_wait)
        sender.look()


def due_message(url: str, **changes: Any) -> OutgoingMessage:
    return outgoing.test(make_outgoing(url, **changes))


def is_signed(headers: dict[str, str], body: bytes, key: bytes) -> bool:
    """As standardwebhooks.com writes it: HMAC-SHA256 of `id.timestamp.payload` in base64, several apart by spaces."""
    content = b".".join([headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body])
    wanted = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    return ("v1", wanted) in [tuple(one.split(",", 1)) for one in headers["webhook-signature"].split(" ")]


# --- what is said ---------------------------------------------------------------------------------------------------


def test_each_state_of_a_run_is_told_and_signed_with_every_secret(
    worker: DrivenWorker, receiver: Receiver, home: Path
) -> None:
    keep(home, secret="\n".join(SECRETS))
    make_outgoing(receiver.url, credential="ops")
    run = worker.drive(submit(make_agent(turns=[{"tools": [ask("May I?")]}]), tags=["a"]))
    assert run.status == Status.WAITING
    send()
    assert sorted(receiver.types) == ["run.pending", "run.processing", "run.waiting"]
    headers, body = next(got for got in receiver.got if b"run.waiting" in got[1])
    told = json.loads(body)
    assert (told["agentfleet-hops"], headers["agentfleet-hops"]) == (1, "1")
    data = told["data"]
    assert (data["id"], data["agent"], data["wait_reason"], data["question"]) == (run.pk, "dev", "input", "May I?")
    assert (data["turns"], data["error"], data["output"], data["finished_at"]) == (1, None, None, None)
    assert data["started_at"] == events.isoformat(run.started_at or clock.now())
    assert data["url"] == f"https://fleet.example.org{reverse('admin:runs_run_change', args=[run.pk])}"
    assert all(is_signed(headers, body, key) for key in KEYS)
    assert not is_signed(headers, body, b"some other key")
    asked = Request(headers=headers, body=body, received_at=clock.now())
    assert PROVIDERS["standardwebhooks"].signed_by(asked, {"ours": SECRETS[0]}) == "ours"
    event = PROVIDERS["standardwebhooks"].parse(asked)
    assert isinstance(event, Event)
    assert event.hops == 1
    assert abs(int(headers["webhook-timestamp"]) - clock.now().timestamp()) < 300
    assert set(OutgoingMessage.objects.values_list("state", "last_answer")) == {("delivered", "HTTP 204")}


@pytest.mark.postgresql
def test_only_who_wants_to_know_is_told_and_nobody_of_another_workspace(worker: DrivenWorker) -> None:
    make_outgoing("http://localhost/", "ends", states=["failed", "finished"])
    make_outgoing("http://localhost/", "others", agents=["other"])
    make_outgoing("http://localhost/", "off", active=False)
    elsewhere = Workspace.objects.create(name="elsewhere")
    Outgoing.objects.create(workspace=elsewhere, name="elsewhere", url="http://localhost/")
    worker.drive(submit(make_agent(turns=[{"text": "done"}])))
    assert list(OutgoingMessage.objects.values_list("outgoing__name", "type")) == [("ends", "run.finished")]
    assert OutgoingMessage.objects.get().body["data"]["output"] == "done"


@pytest.mark.postgresql
def test_a_change_that_is_rolled_back_tells_nobody() -> None:
    make_outgoing("http://localhost/")
    run = submit(make_agent())
    OutgoingMessage.objects.all().delete()
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        assert lifecycle.cancel_idle(run.pk)
        assert OutgoingMessage.objects.count() == 1
        _ = 1 / 0
    assert (OutgoingMessage.objects.count(), Run.objects.get().status) == (0, "pending")
    assert lifecycle.cancel_idle(run.pk)
    assert OutgoingMessage.objects.get().type == "run.canceled"


@pytest.mark.postgresql
def test_where_nobody_is_told_a_change_costs_one_small_question_more() -> None:
    run = submit(make_agent())
    with CaptureQueriesContext(connection) as asked:
        lifecycle.cancel_idle(run.pk)
    about = [query["sql"] for query in asked if "runs_outgoing" in query["sql"]]
    assert about == ["SELECT 1 FROM runs_outgoing WHERE active LIMIT 1"]


def test_what_is_made_rings_for_somebody_to_send_it(worker: DrivenWorker) -> None:
    make_outgoing("http://localhost/")
    submit(make_agent())
    assert [bell.task for bell in worker.rung.bells].count("runs.tasks.send") == 1
    worker.answer_one()


def test_a_message_holds_no_secret_and_no_more_than_its_share_of_the_output() -> None:
    make_outgoing("http://localhost/")
    make_outgoing("http://localhost/", "chat", format="slack")
    run = submit(make_agent())
    OutgoingMessage.objects.all().delete()
    # The cut would go through the secret.
    output = "x" * 3_990 + "a-very-secret-value" + "y" * 100_000
    error = {"code": "EXIT_1", "message": "said a-very-secret-value"}
    Run.objects.filter(pk=run.pk).update(output=output, error=error, status="failed", finished_at=clock.now())
    outgoing.note(run.pk, "failed", redactor=Redactor(["a-very-secret-value"]))
    bodies = {message.outgoing.name: message.body for message in OutgoingMessage.objects.select_related("outgoing")}
    assert "a-very" not in json.dumps(bodies)
    assert len(bodies["ops"]["data"]["output"]) == 4_000
    assert bodies["ops"]["data"]["error"] == {"code": "EXIT_1", "message": "said [redacted]"}
    assert "said [redacted]" in bodies["chat"]["text"]


def test_a_chat_is_told_in_one_line_that_calls_nobody_and_has_one_link(
    worker: DrivenWorker, receiver: Receiver, home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    keep(home, "chat", url=receiver.url)
    make_outgoing("", credential="chat", format="slack", states=["waiting"])
    question = "Ready for <!channel>\n& co? " + "x" * 1_000
    run = worker.drive(submit(make_agent(turns=[{"tools": [ask(question)]}])))
    send()
    [body] = receiver.bodies
    text = body["text"]
    assert list(body) == ["text"]
    assert text.startswith("agent dev: waits (input): Ready for &lt;!channel&gt; &amp; co? xxx")
    assert text.endswith(f"(cause: started by hand) <https://fleet.example.org{PAGE.format(run.pk)}|{run.pk}>")
    assert (text.count("<"), "\n" in text, len(text) < 1_000) == (1, False, True)
    assert "not-for-logs" not in caplog.text
    assert "not-for-logs" not in json.dumps(list(OutgoingMessage.objects.values()), default=str)


@pytest.mark.parametrize(
    ("trigger", "context", "words"),
    [
        ("webhook", {"source": "github", "event": "issues", "action": "opened"}, "delivery github issues opened"),
        ("call", {"caller": "boss", "context": "do"}, "called by boss"),
        ("api", {}, "asked for over REST"),
        ("schedule", {}, "schedule, due 2026-11-20T12:10:00.000Z"),
        ("rerun", {}, "rerun of run_1"),
        ("poll", {}, "poll"),
    ],
)
def test_a_cause_is_told_in_words(trigger: str, context: dict[str, Any], words: str) -> None:
    due = clock.now().replace(2026, 11, 20, 12, 10, 0, 0)
    assert cause_of(Run(trigger=trigger, trigger_context=context, caused_by="run_1", scheduled_for=due)) == words


# --- sending --------------------------------------------------------------------------------------------------------


def test_what_is_not_taken_is_sent_again_later_and_later_until_it_has_failed(
    receiver: Receiver, driven_clock: DrivenClock
) -> None:
    message = due_message(receiver.url)
    receiver.status = 500
    for number, pause in enumerate(PAUSES, 1):
        send()
        assert len(receiver.got) == number
        driven_clock.forward(pause - 3)
        send()
        assert len(receiver.got) == number
        driven_clock.forward(4)
    assert timedelta(hours=22) < timedelta(seconds=sum(PAUSES)) < timedelta(hours=24)
    send()
    message.refresh_from_db()
    assert (message.state, message.tries, message.last_answer) == ("failed", 10, "HTTP 500")
    assert {headers["webhook-id"] for headers, _ in receiver.got} == {message.pk}
    assert len({headers["webhook-timestamp"] for headers, _ in receiver.got}) == 10
    assert Alert.objects.get(cleared_at=None).subject == str(message.outgoing_id)
    driven_clock.forward(100_000)
    send()
    assert len(receiver.got) == 10
    receiver.status = 200
    again = outgoing.replay(message)
    send()
    again.refresh_from_db()
    assert (again.state, again.replay_of_id, again.body) == ("delivered", message.pk, message.body)
    assert not Alert.objects.filter(cleared_at=None).exists()


@pytest.mark.postgresql
def test_who_dies_between_taking_and_sending_leaves_it_due_under_the_same_id(
    receiver: Receiver, driven_clock: DrivenClock
) -> None:
    message = due_message(receiver.url)
    assert outgoing_sender.take(OutgoingMessage.objects.get())
    send()
    assert receiver.got == []
    driven_clock.forward(TAKEN.total_seconds() + 1)
    send()
    [(headers, _)] = receiver.got
    message.refresh_from_db()
    assert (headers["webhook-id"], message.state, message.tries) == (message.pk, "delivered", 2)


@pytest.mark.postgresql
def test_a_worker_sends_by_itself_when_the_bell_rings(
    worker: DrivenWorker, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outgoing_sender, "EVERY", 3600.0)
    looks: list[None] = []

    def edge(look: Callable[[], None]) -> None:
        look()
        connection.close()
        looks.append(None)

    worker.sender.start(edge)
    [thread] = [thread for thread in threading.enumerate() if thread.name == "outgoing"]
    try:
        until(lambda: looks)
        message = due_message(receiver.url)
        until(worker.answer_one)
        until(lambda: OutgoingMessage.objects.get(pk=message.pk).state == "delivered")
    finally:
        worker.stopping.set()
        worker.sender.wake()
        thread.join(10)
    assert not thread.is_alive()


@pytest.mark.postgresql
def test_of_two_that_would_send_a_message_one_may() -> None:
    due_message("http://localhost/")
    mine, theirs = OutgoingMessage.objects.get(), OutgoingMessage.objects.get()
    assert outgoing_sender.take(mine)
    assert not outgoing_sender.take(theirs)


@pytest.mark.postgresql
def test_a_receiver_that_is_gone_is_switched_off_until_its_project_is_applied(receiver: Receiver) -> None:
    reading = parse(folder(f'url = "{receiver.url}"'), project="shop")
    assert projects.apply(make_workspace(), reading.project).outgoing == ["ops"]
    row = Outgoing.objects.get()
    receiver.status = 410
    outgoing.test(row)
    send()
    row.refresh_from_db()
    assert (row.active, OutgoingMessage.objects.get().state, Alert.objects.count()) == (False, "failed", 1)
    with pytest.raises(outgoing.SwitchedOff, match="apply its project"):
        outgoing.test(row)
    submit(make_agent("other"))
    assert OutgoingMessage.objects.count() == 1
    assert projects.apply(make_workspace(), reading.project).outgoing == ["ops"]
    row.refresh_from_db()
    assert (row.active, Alert.objects.filter(cleared_at=None).count()) == (True, 0)


def test_a_receiver_that_hangs_keeps_nobody_waiting_and_takes_few_places(
    receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        hanging = make_outgoing(f"http://127.0.0.1:{silent.getsockname()[1]}/", "hanging")
        for _ in range(40):
            outgoing.test(hanging)
        mine = due_message(receiver.url)
        sender = Sender(stopping=threading.Event())
        sender.look()
        until(lambda: sender.answers_wait)
        sender.look()
        mine.refresh_from_db()
        assert mine.state == "delivered"
        assert Counter(sender.under_way) == {hanging.pk: PER_RECEIVER}
    monkeypatch.setattr(outgoing_sender, "WITHIN", 0.2)
    tried = OutgoingMessage.objects.filter(outgoing=hanging, tries=1)
    until(lambda: sender.answers_wait)
    sender.look()
    assert set(tried.exclude(last_answer="").values_list("state", flat=True)) == {"due"}
    OutgoingMessage.objects.all().update(state="failed")
    send(sender)


@pytest.mark.parametrize(
    ("url", "values", "answer"),
    [
        ("ftp://localhost/x", {}, "the address must begin with https:// or http:// and name a host"),
        ("http://me:word@localhost/x", {}, "the address holds a name or a password, which belong into a credential"),
        ("", {"secret": SECRETS[0]}, "there is no address"),
        ("http://localhost/x", {"secret": "no base64!"}, "a secret is no base64"),
        ("http://localhost/x", None, "no store has outgoing_webhook:ops"),
    ],
)
def test_what_cannot_be_sent_says_why_and_is_tried_again(
    home: Path, url: str, values: dict[str, str] | None, answer: str
) -> None:
    if values:
        keep(home, **values)
    message = due_message(url, credential="ops" if values != {} else "")
    send()
    message.refresh_from_db()
    assert message.last_answer.startswith(answer)
    assert (message.state, message.tries, SECRETS[0] in message.last_answer) == ("due", 1, False)


def test_no_redirect_is_followed(receiver: Receiver) -> None:
    message = due_message(receiver.url)
    receiver.status = 302
    send()
    message.refresh_from_db()
    assert (len(receiver.got), message.state, message.last_answer) == (1, "due", "HTTP 302")


def test_looking_for_what_is_due_reads_no_table_whole() -> None:
    due_message("ftp://localhost/")
    assert whole_tables_read(Sender(stopping=threading.Event()).look) == []
    assert OutgoingMessage.objects.get().tries == 1


@pytest.mark.postgresql
def test_old_messages_are_forgotten_the_failed_ones_last(driven_clock: DrivenClock) -> None:
    row = make_outgoing("http://localhost/")
    ages = [("delivered", 13), ("delivered", 15), ("failed", 15), ("failed", 91), ("due", 100)]
    for number, (state, days) in enumerate(ages):
        made = f"{first_id('out', clock.now() - timedelta(days=days))}{number:016x}"
        OutgoingMessage.objects.create(id=made, outgoing=row, type="test", body={}, state=state)
    outgoing.purge()
    left = OutgoingMessage.objects.order_by("-pk").values_list("state", flat=True)
    assert list(left) == ["delivered", "failed", "due"]


# --- where it is written --------------------------------------------------------------------------------------------


def folder(table: str, *, agents: tuple[str, ...] = ("dev",)) -> dict[str, bytes]:
    settings = f'[model]\nprovider = "scripted"\nmodel = "s"\n\n[outgoing.ops]\n{table}\n'
    skills = {f"agents/{name}/SKILL.md": b"Work.\n" for name in agents}
    configs = {f"agents/{name}/config.toml": b'network = "none"\n' for name in agents}
    return {"config.toml": settings.encode(), **skills, **configs}


@pytest.mark.parametrize(
    ("table", "line", "message"),
    [
        ('url = "gopher://x"', 6, "the address must begin with https:// or http://"),
        ('agents = ["deb"]\nurl = "https://x.org"', 6, "there is no agent deb: did you mean dev?"),
        ('states = ["done"]', 6, "outgoing.ops.states[0] must be pending, processing, waiting, finished, failed or c"),
        ('adress = "https://x.org"', 6, "unknown key outgoing.ops.adress"),
        ('uri = "https://x.org"', 6, "unknown key outgoing.ops.uri: did you mean url?"),
        ('states = ["failed"]', 5, "outgoing.ops has no address"),
        ('credential = "../x"', 6, "'../x' names no credential"),
        ('url = "https://x.org"\nformat = "teams"', 7, "outgoing.ops.format must be standard or slack"),
    ],
)
def test_what_is_wrong_in_the_folder_is_told_with_its_line(table: str, line: int, message: str) -> None:
    with pytest.raises(Faulty) as raised:
        parse(folder(table), project="shop")
    assert any(f.line == line and f.message.startswith(message) for f in raised.value.faults), raised.value


def test_a_message_that_nobody_could_tell_from_a_forged_one_is_worth_a_warning() -> None:
    assert any("are not signed" in fault.message for fault in warnings('url = "https://x.org"'))
    assert not any("signed" in fault.message for fault in warnings('credential = "ops"'))


def warnings(table: str) -> Any:
    return parse(folder(table), project="shop").warnings


def test_a_project_is_applied_exported_and_dropped_with_whom_it_tells() -> None:
    table = 'url = "https://x.org/h"\ncredential = "outgoing_webhook:ops"\nstates = "failed"\nagents = ["dev"]'
    reading: Reading = parse(folder(table), project="shop")
    workspace = make_workspace()
    assert projects.apply(workspace, reading.project).outgoing == ["ops"]
    assert projects.apply(workspace, reading.project).outgoing == []
    row = Outgoing.objects.get()
    assert (row.url, row.credential, row.states, row.agents) == ("https://x.org/h", "ops", ["failed"], ["dev"])
    again = parse(export.files_of(projects.stored(workspace, "shop")), project="shop")
    assert again.project.outgoing == reading.project.outgoing
    with pytest.raises(projects.NameTaken, match="outgoing webhook ops belongs to project shop"):
        projects.apply(workspace, parse(folder(table, agents=("dev",)), project="mine").project)
    outgoing.test(row)
    gone = {path: content for path, content in folder("").items() if path != "config.toml"}
    gone["config.toml"] = b'[model]\nprovider = "scripted"\nmodel = "s"\n'
    projects.apply(workspace, parse(gone, project="shop").project)
    row.refresh_from_db()
    assert (row.active, OutgoingMessage.objects.get().state) == (False, "failed")


# --- pages ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def operator() -> Client:
    client = Client()
    client.force_login(User.objects.create_superuser("operator"))
    return client


def failed_message(home: Path) -> OutgoingMessage:
    keep(home, secret=SECRETS[0], url="http://localhost/not-for-pages")
    message = outgoing.test(make_outgoing("", credential="ops"))
    OutgoingMessage.objects.filter(pk=message.pk).update(state="failed", tries=10, last_answer="HTTP 500")
    alerts.begin(outgoing.FAILED, str(message.outgoing_id), "ops takes nothing")
    return message


def test_operators_see_and_replay_messages_and_never_a_secret(operator: Client, home: Path) -> None:
    message = failed_message(home)
    row = reverse("admin:runs_outgoing_change", args=[message.outgoing_id])
    lists = [reverse("admin:runs_outgoing_changelist"), reverse("admin:runs_outgoingmessage_changelist")]
    pages = [*lists, row, reverse("admin:runs_outgoingmessage_change", args=[message.pk]), reverse("admin:index")]
    told = [operator.get(page).content.decode() for page in pages]
    assert all("ops" in page for page in told)
    assert all("HTTP 500" in page for page in told[:4])
    assert "1 failed" in told[4]
    assert f'href="{row}"' in told[4]
    assert not any(secret in page for page in told for secret in (SECRETS[0], "not-for-pages"))
    replay, test = (reverse(f"admin:{name}", args=[pk]) for name, pk in urls(message))
    assert operator.get(replay).status_code == 200
    assert OutgoingMessage.objects.count() == 1
    operator.post(replay)
    operator.post(test)
    made = OutgoingMessage.objects.exclude(pk=message.pk).values_list("type", "replay_of", "state").order_by("pk")
    assert list(made) == [("test", message.pk, "due"), ("test", None, "due")]


def urls(message: OutgoingMessage) -> list[tuple[str, Any]]:
    return [("runs_outgoingmessage_replay", message.pk), ("runs_outgoing_test", message.outgoing_id)]


def test_who_may_only_look_replays_nothing(home: Path) -> None:
    message = failed_message(home)
    client = Client()
    client.force_login(User.objects.create_user("viewer", is_staff=True))
    answers = [client.post(reverse(f"admin:{name}", args=[pk])).status_code for name, pk in urls(message)]
    assert answers == [403, 403]
    assert OutgoingMessage.objects.count() == 1


@pytest.mark.postgresql
def test_programs_list_and_replay_what_was_said(home: Path) -> None:
    message = failed_message(home)
    call = caller(make_workspace())
    [row] = call("GET", "outgoing")[1]["outgoing"]
    assert (row["name"], row["due"], row["failed"], row["url"]) == ("ops", 0, 1, "")
    [told] = call("GET", "outgoing/messages?state=failed&outgoing=ops")[1]["messages"]
    assert (told["id"], told["last_answer"], told["body"]["type"]) == (message.pk, "HTTP 500", "test")
    assert call("GET", "outgoing/messages?state=due")[1]["messages"] == []
    status, made = call("POST", f"outgoing/messages/{message.pk}/replay")
    assert (status, made["message"]["replay_of"], made["message"]["state"]) == (202, message.pk, "due")
    stranger = caller(Workspace.objects.create(name="elsewhere"))
    assert stranger("GET", "outgoing")[1]["outgoing"] == []
    assert stranger("POST", f"outgoing/messages/{message.pk}/replay")[0] == 404
    Outgoing.objects.all().update(active=False)
    assert call("POST", f"outgoing/messages/{message.pk}/replay")[1]["error"]["code"] == "OUTGOING_OFF"


def caller(workspace: Workspace) -> Callable[[str, str], tuple[int, Any]]:
    _, token = ApiToken.issue(workspace, "test")

    def call(method: str, path: str) -> tuple[int, Any]:
        answer = Client().generic(method, f"/api/v1/{path}", headers={"Authorization": f"Bearer {token}"})
        return answer.status_code, json.loads(answer.content)

    return call
