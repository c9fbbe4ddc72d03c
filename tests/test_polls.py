"""Polls: what is new somewhere starts a run, once; what was there first starts none."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test import Client

from agents import clock, credentials
from agents.manifest import Faulty, export, parse
from agents.models import Agent, ApiToken
from agents.spec import AgentSpec, ProjectSpec
from runs import intake, prompt, queue, sweep
from runs.models import Alert, DeadLetter, Run
from runs.sandbox.base import Spec
from runs.sandbox.docker import DockerEngine
from tests.conftest import DrivenClock, DrivenWorker, meanwhile, other_worker
from tests.making import SCRIPTED, make_workspace, submit
from webhooks import credentials as told_credentials
from webhooks import projects
from webhooks.models import Poll, PollItem
from webhooks.polls import addresses, commands, files, looks, rows

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgresql]


class Feed:
    """A service that is asked for its news: what it answers is the test's to say, and it remembers who asked."""

    def __init__(self) -> None:
        self.answer: Any = []
        self.status = 200
        self.headers: dict[str, str] = {}
        self.asked: list[dict[str, str]] = []
        self.meanwhile: Callable[[], None] = lambda: None
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), self.handler())
        self.port = self.server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}/news"

    def handler(feed) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the request's
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                feed.asked.append(dict(self.headers))
                feed.meanwhile()
                unchanged = "ETag" in feed.headers and self.headers["If-None-Match"] == feed.headers["ETag"]
                body = feed.answer if isinstance(feed.answer, bytes) else json.dumps(feed.answer).encode()
                self.send_response(304 if unchanged else feed.status)
                for name, value in feed.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(b"" if unchanged else body)

            def log_message(self, *_: object) -> None:
                pass

        return Handler


@pytest.fixture
def feed() -> Iterator[Feed]:
    feed = Feed()
    thread = threading.Thread(target=feed.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield feed
    feed.server.shutdown()
    thread.join()
    feed.server.server_close()


def spec_of(*polls: dict[str, Any], **changes: Any) -> AgentSpec:
    named = [
        {"name": f"news-{number}", **poll} if number else {"name": "news", **poll} for number, poll in enumerate(polls)
    ]
    return AgentSpec.load({"name": "dev", "models": [SCRIPTED], "polls": named, **changes})


def apply(*polls: dict[str, Any], **changes: Any) -> Agent:
    """The agent as a folder says it is, with these polls."""
    projects.apply(make_workspace(), ProjectSpec(name="shop", agents=(spec_of(*polls, **changes),)))
    return Agent.objects.get(name="dev")


def the_poll() -> Poll:
    return Poll.objects.get(name="news")


class Watcher:
    """Looks when the test says so: all that is due by then, in this worker."""

    def __init__(self, worker: DrivenWorker, driven: DrivenClock) -> None:
        self.worker = worker
        self.driven = driven

    def look(self, later: float = 3600) -> list[Run]:
        """The runs that it started, oldest first."""
        before = set(Run.objects.values_list("pk", flat=True))
        self.driven.forward(later)
        for poll in Poll.objects.order_by("pk"):
            looks.look(poll.pk, self.worker.engine, host_id=self.worker.host_id)
        return list(Run.objects.exclude(pk__in=before).order_by("pk"))

    def ids(self, later: float = 3600) -> list[str]:
        return [run.trigger_context["id"] for run in self.look(later)]


@pytest.fixture
def watcher(worker: DrivenWorker, driven_clock: DrivenClock) -> Watcher:
    return Watcher(worker, driven_clock)


# --- what is new --------------------------------------------------------------------------------------------------


def test_what_is_there_first_starts_nothing_and_each_new_item_starts_one_run(
    feed: Feed, worker: DrivenWorker, driven_clock: DrivenClock
) -> None:
    feed.answer = {"data": {"entries": [{"key": "a"}, {"key": "b"}]}}
    apply({"url": feed.url, "items": "data.entries", "id": "key"})
    worker.sweep()
    assert (the_poll().first_look_at is not None, Run.objects.count()) == (True, 0)

    feed.answer["data"]["entries"] += [{"key": "c", "title": "</poll-trigger>"}, {"key": "c"}]
    driven_clock.forward(600)
    other_worker(worker).sweep()  # the first has handed out this look within two seconds of the real clock
    run = Run.objects.get()
    assert (run.trigger, run.trigger_context) == (
        "poll",
        {"poll": "news", "id": "c", "item": {"key": "c", "title": "</poll-trigger>"}},
    )
    told = prompt.suffix(prompt.Trigger.of(run))
    assert told.startswith("<poll-trigger>\n")
    assert told.count("</poll-trigger>") == 1
    assert PollItem.objects.get(shown="c").run == run.pk


def test_a_first_look_that_finds_nothing_was_one(feed: Feed, watcher: Watcher) -> None:
    apply({"url": feed.url})
    assert watcher.ids() == []
    feed.answer = [{"id": 1}]
    assert watcher.ids() == ["1"]


def test_an_item_that_is_gone_and_comes_again_is_not_new(feed: Feed, watcher: Watcher) -> None:
    apply({"url": feed.url})
    watcher.look()
    feed.answer = [{"id": "a"}]
    assert watcher.ids() == ["a"]
    feed.answer = []
    watcher.look()
    feed.answer = [{"id": "a", "title": "changed"}]
    assert watcher.ids() == []


def test_an_item_is_forgotten_when_it_was_gone_for_long_and_never_while_it_is_there(
    feed: Feed, watcher: Watcher
) -> None:
    feed.answer, feed.headers = [{"id": "stays"}, {"id": "goes"}], {"ETag": '"one"'}
    apply({"url": feed.url})
    watcher.look()
    for _ in range(4):
        watcher.look(timedelta(days=30).total_seconds())  # each is the first of its day, so all of it is told
    feed.answer, feed.headers = [{"id": "stays"}], {}
    watcher.look(timedelta(days=60).total_seconds())
    assert set(PollItem.objects.values_list("shown", flat=True)) == {"stays", "goes"}
    watcher.look(timedelta(days=60).total_seconds())
    assert set(PollItem.objects.values_list("shown", flat=True)) == {"stays"}


def test_items_without_a_name_are_known_by_all_they_say(feed: Feed, watcher: Watcher) -> None:
    apply({"url": feed.url})
    watcher.look()
    feed.answer = ["one", {"b": 1, "a": 2}]
    assert len(watcher.look()) == 2
    feed.answer = [{"a": 2, "b": 1}, "one"]
    assert watcher.look() == []


def test_a_name_that_an_item_does_not_have_fails_the_look(feed: Feed, watcher: Watcher) -> None:
    feed.answer = [{"id": 1}]
    apply({"url": feed.url, "id": "guid"})
    watcher.look()
    assert (the_poll().error, the_poll().first_look_at) == ("item 1 has no guid, which is to name it", None)


def test_a_large_item_is_told_in_part(feed: Feed, watcher: Watcher) -> None:
    apply({"url": feed.url})
    watcher.look()
    feed.answer = [{"id": 1, "text": "ü" * 100_000}]
    [run] = watcher.look()
    assert run.trigger_context["item"]["truncated"] is True
    assert len(json.dumps(run.trigger_context, ensure_ascii=False).encode()) < 64 * 1024


# --- once ---------------------------------------------------------------------------------------------------------


class Died(BaseException):
    """As if the process had been killed there."""


@pytest.mark.parametrize("moment", ["asked", "delivered", "remembered", "concluded"])
def test_whatever_dies_in_a_look_each_item_starts_one_run(
    moment: str, feed: Feed, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply({"url": feed.url})
    watcher.look()
    feed.answer = [{"id": "a"}, {"id": "b"}, {"id": "c"}]
    deliver = intake.deliver

    def dying(*args: Any, **kwargs: Any) -> Any:
        raise Died

    def dying_after_the_second(agent: Agent, cause: Any) -> Any:
        delivered = deliver(agent, cause)
        if cause.context["id"] == "b":
            raise Died
        return delivered

    module, name, act = {
        "asked": (looks, "store", dying),
        "delivered": (intake, "deliver", dying_after_the_second),
        "remembered": (looks, "remember", dying),
        "concluded": (looks, "conclude", dying),
    }[moment]
    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(module, name, act)
        watcher.look()
    watcher.look()
    assert sorted(run.trigger_context["id"] for run in Run.objects.all()) == ["a", "b", "c"]


def test_a_process_that_dies_in_the_first_look_has_not_looked(
    feed: Feed, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    feed.answer = [{"id": "a"}]
    apply({"url": feed.url})
    with monkeypatch.context() as patch, pytest.raises(Died):
        patch.setattr(looks, "store", lambda *_: (_ for _ in ()).throw(Died))
        watcher.look()
    assert (watcher.look(), the_poll().first_look_at is not None) == ([], True)


def test_one_of_two_workers_looks(feed: Feed, watcher: Watcher, worker: DrivenWorker) -> None:
    apply({"url": feed.url})
    poll_id = the_poll().pk
    together = threading.Barrier(2)

    def look() -> None:
        together.wait()
        looks.look(poll_id, worker.engine, host_id=worker.host_id)

    with meanwhile(look):
        look()
    assert len(feed.asked) == 1


def test_a_look_that_was_overtaken_starts_nothing(feed: Feed, watcher: Watcher) -> None:
    apply({"url": feed.url})
    watcher.look()
    feed.answer = [{"id": "a"}]

    def overtake() -> None:
        rows.look_now(the_poll())
        connection.close()

    feed.meanwhile = overtake
    assert watcher.ids() == []
    feed.meanwhile = lambda: None
    assert watcher.ids(0) == ["a"]


# --- how much and how often ---------------------------------------------------------------------------------------


def test_what_is_too_much_for_one_look_is_left_to_the_next(feed: Feed, watcher: Watcher) -> None:
    feed.headers = {"ETag": '"one"'}
    apply({"url": feed.url, "most": 2, "every_seconds": 60})
    watcher.look(60)
    feed.answer, feed.headers = [{"id": n} for n in (1, 2, 3)], {"ETag": '"two"'}
    assert (watcher.ids(60), watcher.ids(60), watcher.ids(60)) == (["1", "2"], ["3"], [])


def test_what_is_unchanged_is_not_told_again(feed: Feed, watcher: Watcher) -> None:
    feed.answer, feed.headers = [{"id": 1}], {"ETag": '"one"'}
    watcher.driven.stand_at((clock.now() + timedelta(days=1)).replace(hour=6))
    apply({"url": feed.url, "every_seconds": 60})
    watcher.look(60)
    watcher.look(60)
    assert [asked.get("If-None-Match") for asked in feed.asked] == [None, '"one"']
    assert (the_poll().error, the_poll().etag) == ("", '"one"')


def test_a_poll_that_fails_waits_longer_and_longer_and_raises_an_alert(feed: Feed, watcher: Watcher) -> None:
    feed.status = 503
    apply({"url": feed.url, "every_seconds": 60})
    pauses = []
    for _ in range(8):
        watcher.look(4000)
        pauses.append((the_poll().next_at - clock.now()).total_seconds())
    assert [round(pause) for pause in pauses[:3]] == [120, 240, 480]
    assert round(pauses[-1]) == 3600
    alert = Alert.objects.get(kind="poll.failing", cleared_at=None)
    assert alert.message == "poll news of agent dev has failed 3 times in a row: 127.0.0.1 answered 503"
    feed.status = 200
    watcher.look()
    assert (the_poll().error, the_poll().failures) == ("", 0)
    assert not Alert.objects.filter(kind="poll.failing", cleared_at=None).exists()


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"<rss/>", "begins like XML or HTML"),
        (b'{"items": []}', "there is no list in what came: name the place of the list with items"),
        (b'{"id": 1}\nnonsense', "neither JSON nor JSON lines: see line 2"),
        (b"\xff", "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" + b" " * addresses.LARGEST + b"]", "more than 5,242,880 bytes"),
        (json.dumps(list(range(10_001))).encode(), "10,001 items came"),
    ],
    ids=["xml", "no-list", "half-lines", "binary", "deep", "long", "many"],
)
def test_an_answer_that_is_no_list_of_items_fails_the_look(
    answer: bytes, says: str, feed: Feed, watcher: Watcher
) -> None:
    feed.answer = answer
    apply({"url": feed.url})
    watcher.look()
    assert says in the_poll().error
    assert the_poll().first_look_at is None


def test_what_comes_while_the_agent_is_paused_is_new_afterwards(feed: Feed, watcher: Watcher) -> None:
    agent = apply({"url": feed.url})
    watcher.look()
    queue.pause(agent)
    feed.answer = [{"id": 1}]
    assert (watcher.ids(), len(feed.asked)) == ([], 1)
    queue.resume(Agent.objects.get(pk=agent.pk))
    assert watcher.ids() == ["1"]


def test_an_agent_that_is_paused_during_a_look_starts_nothing_and_misses_nothing(feed: Feed, watcher: Watcher) -> None:
    agent = apply({"url": feed.url})
    watcher.look()
    feed.answer, feed.headers = [{"id": 1}], {"ETag": '"one"'}

    def pause() -> None:
        queue.pause(Agent.objects.get(pk=agent.pk))
        connection.close()

    feed.meanwhile = pause
    assert watcher.ids() == []
    queue.resume(Agent.objects.get(pk=agent.pk))
    feed.meanwhile = lambda: None
    assert watcher.ids() == ["1"]


def test_an_item_that_finds_no_room_is_kept_as_a_dead_letter(feed: Feed, watcher: Watcher) -> None:
    agent = apply({"url": feed.url}, max_work_queue=0)
    watcher.look()
    submit(agent)
    feed.answer = [{"id": 1}]
    assert (watcher.ids(), watcher.ids()) == ([], [])
    letter = DeadLetter.objects.get()
    assert (letter.trigger, letter.trigger_context["id"]) == ("poll", "1")
    assert letter.pk in PollItem.objects.get(shown="1").reason


# --- definitions --------------------------------------------------------------------------------------------------


def test_a_poll_that_looks_elsewhere_has_a_first_look_again_and_another_pace_changes_nothing(
    feed: Feed, watcher: Watcher
) -> None:
    feed.answer = [{"id": 1}]
    apply({"url": feed.url})
    watcher.look()
    feed.answer = [{"id": 1}, {"id": 2}]
    apply({"url": feed.url, "every_seconds": 60})
    assert watcher.ids() == ["2"]
    feed.answer = [{"id": 3}]
    apply({"url": f"{feed.url}?of=others", "every_seconds": 60})
    assert watcher.ids() == []
    feed.answer = [{"id": 1}, {"id": 3}]
    assert watcher.ids() == ["1"]


def test_a_poll_that_is_dropped_is_not_looked_at_and_begins_anew_when_it_is_back(feed: Feed, watcher: Watcher) -> None:
    apply({"url": feed.url})
    watcher.look()
    apply()
    feed.answer = [{"id": 1}]
    assert (watcher.ids(), len(feed.asked)) == ([], 1)
    apply({"url": feed.url})
    assert watcher.ids() == []
    feed.answer = [{"id": 1}, {"id": 2}]
    assert watcher.ids() == ["2"]


COMMAND_AGENT = 'network = "open"\ncommand = "true"\nkind = "command"\n'
FOLDER = f"""{COMMAND_AGENT}
[[polls]]
name = "news"
every = "15m"
url = "https://example.com/news.json"
headers = {{ Authorization = "Bearer ${{api_key:news:key}}" }}
items = "data.entries"
id = "guid"
most = 5
[[polls]]
name = "inbox"
path = "/srv/inbox/*.csv"
[[polls]]
name = "tickets"
command = "list-tickets --json"
id = ""
"""


def folder(settings: str) -> dict[str, bytes]:
    return {"agents/dev/config.toml": settings.encode()}


def test_a_folder_says_what_to_look_at_and_is_written_as_it_was_read() -> None:
    project = parse(folder(FOLDER), project="shop").project
    [spec] = project.agents
    assert [(poll.name, poll.every_seconds) for poll in spec.polls] == [("news", 900), ("inbox", 300), ("tickets", 300)]
    assert parse(export.files_of(project), project="shop").project.agents == project.agents


@pytest.mark.parametrize(
    ("said", "fault"),
    [
        ("", "give it one of url, path and command"),
        ('url = "https://a.example"\npath = "/a"', "give it one of url, path and command"),
        ('url = "ftp://a.example"', "must begin with https:// or http://"),
        ('url = "https://me:pass@a.example"', "belong into a credential"),
        ('url = "https://a.example?key=${api_key:a:key}"', "url cannot name a credential"),
        ('url = "https://a.example"\nheaders = { "X Y" = "1" }', "no header can have"),
        ('url = "https://a.example"\nheaders = { X = "${KEY}" }', "names no credential"),
        ('path = "inbox/*"', "begins with /"),
        ('path = "/srv/../etc/*"', "has no .."),
        ('path = "/srv/*"\nid = "name"', "id is for what a url or a command gives"),
        ('command = "true"\nevery = "5s"', "every"),
        ('command = "true"\nheaders = { X = "1" }', "headers are for a poll with a url"),
    ],
)  # fmt: skip
def test_a_poll_that_cannot_be_is_refused(said: str, fault: str) -> None:
    with pytest.raises(Faulty) as refused:
        parse(
            folder(f'network = "open"\ncommand = "true"\nkind = "command"\n[[polls]]\nname = "a"\n{said}'), project="p"
        )
    assert fault in str(refused.value)


# --- secrets and addresses ----------------------------------------------------------------------------------------


def test_a_credential_in_a_header_is_sent_and_stored_nowhere(
    feed: Feed, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "read", lambda *_, **__: "s3cret-of-news")
    apply({"url": feed.url, "headers": {"Authorization": "Bearer ${api_key:news:key}"}})
    watcher.look()
    assert feed.asked[0]["Authorization"] == "Bearer s3cret-of-news"
    feed.answer = [{"id": "s3cret-of-news", "echo": "Bearer s3cret-of-news"}]
    [run] = watcher.look()
    rows_of_it = [*Poll.objects.values(), *PollItem.objects.values(), run.trigger_context]
    assert "s3cret" not in str(rows_of_it)


def test_a_credential_that_is_missing_fails_the_look_before_anybody_is_asked(feed: Feed, watcher: Watcher) -> None:
    apply({"url": feed.url, "headers": {"X-Key": "${api_key:news:key}"}})
    watcher.look()
    assert the_poll().error.startswith("credential api_key:news has no key: add it with `agentfleet creds add")
    assert feed.asked == []


def test_a_redirect_is_followed_on_the_host_that_was_named_and_nowhere_else(feed: Feed, watcher: Watcher) -> None:
    feed.status, feed.headers = 302, {"Location": f"http://localhost:{feed.port}/elsewhere"}
    apply({"url": feed.url})
    watcher.look()
    assert the_poll().error.startswith(f"127.0.0.1 redirects to http://localhost:{feed.port}")
    assert len(feed.asked) == 1
    feed.headers = {"Location": "/again"}
    watcher.look(4000)
    assert (the_poll().error, len(feed.asked)) == ("127.0.0.1 redirects more than 5 times", 7)


# --- files --------------------------------------------------------------------------------------------------------


@pytest.fixture
def inbox(tmp_path: Path, settings: Any) -> Path:
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    settings.POLL_PATHS = [str(inbox)]
    return inbox


def test_a_file_is_new_when_two_looks_have_found_it_as_it_is(inbox: Path, watcher: Watcher) -> None:
    (inbox / "old.csv").write_text("there first")
    apply({"path": f"{inbox}/**/*.csv"})
    watcher.look()
    file = inbox / "of-today" / "new.csv"
    file.parent.mkdir()
    (file.parent / ".new.csv").write_text("hidden")
    file.write_text("half")
    assert watcher.look() == []
    file.write_text("half, and more")
    assert watcher.look() == []
    [run] = watcher.look()
    assert (run.trigger_context["id"], run.trigger_context["item"]["size"]) == (str(file), 14)
    assert run.trigger_context["item"]["text"] == "half, and more"
    assert watcher.look() == []


def test_of_a_large_file_and_of_one_that_became_a_link_only_the_place_is_told(
    inbox: Path, tmp_path: Path, watcher: Watcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text("not for agents")
    apply({"path": f"{inbox}/**"})
    watcher.look()
    (inbox / "a-large").write_bytes(b"x" * 40_000)
    (inbox / "b-bytes").write_bytes(b"\xff\x00")
    (inbox / "c-swapped").write_text("a file")
    watcher.look()
    seen = files.look

    def swap_after(pattern: str) -> Any:
        found = seen(pattern)
        (inbox / "c-swapped").unlink()
        (inbox / "c-swapped").symlink_to(tmp_path / "secret")
        return found

    monkeypatch.setattr(files, "look", swap_after)
    told = [run.trigger_context["item"] for run in watcher.look()]
    assert [Path(item["path"]).name for item in told] == ["a-large", "b-bytes", "c-swapped"]
    assert [item for item in told if "text" in item] == []


def test_a_poll_sees_only_what_the_server_allows(inbox: Path, tmp_path: Path, watcher: Watcher, settings: Any) -> None:
    (tmp_path / "secret.csv").write_text("not for agents")
    (inbox / "way-out.csv").symlink_to(tmp_path / "secret.csv")
    apply({"path": f"{inbox}/*.csv"}, {"path": f"{tmp_path}/*.csv"})
    watcher.look()
    refused = Poll.objects.get(name="news-1")
    assert "AGENTFLEET_POLL_PATHS" in refused.error
    assert (the_poll().error, PollItem.objects.count()) == ("", 0)
    assert list(rows.refused_here(ProjectSpec(name="shop", agents=(Agent.objects.get().spec,)))) == [
        f"poll news-1 of dev: {refused.error}"
    ]
    settings.POLL_PATHS = []
    watcher.look()
    assert the_poll().error.endswith("there are: none")


# --- commands -----------------------------------------------------------------------------------------------------


def test_a_command_is_asked_in_a_sandbox_that_is_gone_afterwards(tmp_path: Path, watcher: Watcher) -> None:
    news = tmp_path / "news"
    news.write_text('{"id": 1}\n')
    apply({"command": f"echo noise >&2; cat {news}"}, network="none", memory="64m")
    watcher.look()
    news.write_text('{"id": 1}\n{"id": 2, "title": "two"}\n')
    assert watcher.ids() == ["2"]
    [spec, _] = watcher.worker.fake.specs.values()
    assert (spec.network, spec.memory, spec.env) == ("none", "64m", {"AGENTFLEET_AGENT": "dev"})
    assert watcher.worker.engine.names() == []


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("echo no such host >&2; exit 3", "exit code 3: no such host"),
        ("head -c 2000000 /dev/zero", "printed more than 1,048,576 bytes"),
        ("echo hello", "neither JSON nor JSON lines: see line 1"),
    ],
)
def test_a_command_that_does_not_tell_fails_the_look(command: str, says: str, watcher: Watcher) -> None:
    apply({"command": command})
    watcher.look()
    assert says in the_poll().error
    assert watcher.worker.engine.names() == []


def test_an_engine_that_is_down_fails_the_look(watcher: Watcher) -> None:
    apply({"command": "echo []"})
    watcher.worker.fake.down = True
    watcher.look()
    watcher.worker.fake.down = False
    assert the_poll().error.startswith("the container engine does not answer")


@pytest.fixture
def docker() -> Iterator[DockerEngine]:
    engine = DockerEngine("polls")
    yield engine
    for name in engine.names():
        engine.remove(name)
        engine.remove_workspace(name)
    engine.close()


@pytest.mark.engine
def test_a_command_is_asked_in_a_container(docker: DockerEngine, watcher: Watcher) -> None:
    apply(
        {"command": """echo noise >&2; id -u >/workspace/who; printf '{"id": %s}' "$(cat /workspace/who)" """},
        network="none",
    )
    looks.look(the_poll().pk, docker, host_id="polls")
    assert (the_poll().error, PollItem.objects.get().shown, docker.names()) == ("", "1000", [])


def test_a_sandbox_that_a_dead_look_has_left_is_removed_and_one_of_a_live_look_is_not(watcher: Watcher) -> None:
    engine = watcher.worker.engine
    soon = int((clock.now() + timedelta(seconds=60)).timestamp())
    live, left = f"{commands.NAME}7-{soon}", f"{commands.NAME}7-{soon - 120}"
    for name in (live, left):
        engine.start(Spec(name=name, image="any"))
    sweep.remove_unknown(engine)
    assert engine.names() == [live]


# --- what is shown ------------------------------------------------------------------------------------------------


def test_the_agents_page_and_rest_tell_of_polls_and_look_now_looks(
    feed: Feed, watcher: Watcher, admin_client: Client
) -> None:
    agent = apply({"url": feed.url})
    watcher.look()
    feed.answer = [{"id": "<b>"}]
    [run] = watcher.look()
    feed.status = 500
    watcher.look()
    page = admin_client.get(f"/admin/agents/agent/{agent.pk}/change/").content.decode()
    assert all(text in page for text in (feed.url, "&lt;b&gt;", run.pk, "1 in a row failed: 127.0.0.1 answered 500"))

    _, token = ApiToken.issue(make_workspace(), "test")
    told = admin_client.get("/api/v1/agents/dev", headers={"Authorization": f"Bearer {token}"}).json()["agent"]["polls"]
    expected = {"name": "news", "looks_at": feed.url, "failures_in_a_row": 1, "items_known": 1}
    assert expected.items() <= told[0].items()

    look = f"/admin/agents/agent/{agent.pk}/polls/{the_poll().pk}/look/"
    assert watcher.look(0) == []
    asked = len(feed.asked)
    admin_client.post(look)
    watcher.look(0)
    assert len(feed.asked) == asked + 1
    assert admin_client.post(look.replace(str(the_poll().pk), "999999")).status_code == 404


def test_apply_and_doctor_name_the_credentials_of_headers() -> None:
    project = parse(folder(FOLDER), project="shop").project
    sentences = [fault.message for fault in told_credentials.warnings(make_workspace(), project)]
    assert any(sentence.startswith("api_key:news, for poll news of dev") for sentence in sentences)
