"""The commands that agents find in their sandbox: what they print, their exit codes, and what they ask the gateway.

In real containers, one for each way they have to speak HTTP: with curl, python3 or GNU wget alone, and of busybox,
which has an nc.
"""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from django.conf import settings

from agents import private_files
from agents.ids import new_id
from runs import agent_calls
from runs.gateway.server import Gateway
from runs.models import Attempt, Event, Lock, Run
from runs.sandbox.base import Command, Sandbox, Spec
from runs.sandbox.docker import DockerEngine
from runs.sandbox.ready import BIN
from tests.at_work import at_work, name_of, secret_of
from tests.conftest import until
from tests.doubles.gateway import OK, Answer, Asked, StubGateway, stub_gateway
from tests.making import make_agent
from tests.test_gateway import ended
from tests.test_sandbox_contract import IMAGE, whole

pytestmark = pytest.mark.engine

SECRET = "5e1f0a7e-0000-4000-8000-00000000cafe"  # of the stub
# An image for each client, without the others; that of busybox has nothing else at all. The sandbox image has curl.
RECIPE = f"""\
FROM {IMAGE} AS all
USER 0:0
RUN apt-get update && apt-get install -y --no-install-recommends -o Dpkg::Options::=--force-unsafe-io \\
    python3 wget busybox-static && apt-get clean && rm -rf /var/lib/apt/lists/*
FROM all AS python3
RUN rm /usr/bin/curl /usr/bin/wget /bin/busybox
USER 1000:1000
FROM all AS wget
RUN rm -r /usr/bin/curl /bin/busybox /usr/bin/python3* /usr/lib/python3*
USER 1000:1000
FROM scratch AS busybox
COPY --from=all /bin/busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
USER 1000:1000
FROM {IMAGE} AS nothing
USER 0:0
RUN rm /usr/bin/curl
USER 1000:1000
"""
CLIENTS = ["curl", "python3", "wget", "busybox"]
IMAGES = [*CLIENTS, "nothing"]
# `try COMMAND…` runs one, and says how it ended.
TRY = 'try() { "$@" 2>>/tmp/errors; echo "$1: $?"; }\n'

TEXTS = [
    b"github://acme/app/issues/42",
    b"deploy \"api\" \\ prod \\n \\u0041 $HOME `id` $(id) %s %d 'x' {}[]<>&;|*?~#!",
    "naïve ünïcode ☃ 日本語 😀 \u2028\u2029\ufeff".encode(),
    bytes(range(1, 128)),
    b"two lines\nand line ends at the end\n\n\n",
    b"\n",
    b" \t leading and trailing \r\n ",
    b"not UTF-8: \xff\xfe \xc3\x28 \xed\xa0\x80 \xf0\x9f\x98",
    b'"\\\n\x01' * 16_384,
    "é☃😀".encode() * 7_000,
]
TELLING = [3, 7, 8]  # of them, those that say most about a client


@dataclass(frozen=True)
class Room:
    """A sandbox with the network of policy `gateway`, and where the gateway has to listen."""

    engine: DockerEngine
    sandbox: Sandbox
    address: str

    @property
    def url(self) -> str:
        return f"http://gateway:{settings.GATEWAY_PORT}"

    def sh(self, script: str, **env: str) -> str:
        """What it prints, without its errors."""
        given = {"GATEWAY_URL": self.url, "SHUTDOWN_SECRET": SECRET, **env}
        command = Command(call_id=new_id("call"), argv=["sh", "-c", f"{TRY}{script}"], timeout=100, env=given)
        output, outcome = whole(self.engine.exec(self.sandbox, command))
        assert outcome.exit_code == 0, output
        return output.decode()

    def tries(self, *commands: str, **env: str) -> list[str]:
        """The lines that these commands print, each followed by its name and exit code."""
        return self.sh("\n".join(f"try {command}" for command in commands), **env).splitlines()

    @contextmanager
    def stub(self, answers: Callable[[Asked], Answer] = lambda _: OK) -> Iterator[StubGateway]:
        with stub_gateway(self.address, settings.GATEWAY_PORT, answers) as stub:
            yield stub

    @contextmanager
    def gateway(self) -> Iterator[None]:
        """The real one, on the test's database."""
        gateway = Gateway(Path(settings.HOME) / "gateway.json")
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever)
        thread.start()
        try:
            asyncio.run_coroutine_threadsafe(gateway.look(), loop).result(10)
            yield
        finally:
            asyncio.run_coroutine_threadsafe(gateway.stop(), loop).result(10)
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


@pytest.fixture(scope="module")
def images() -> Iterator[dict[str, str]]:
    """What an image has to speak with -> its tag."""
    built = {client: f"agentfleet-test-commands-{client}:{new_id('image')}" for client in IMAGES if client != "curl"}
    try:
        for client, tag in built.items():
            build = ["docker", "build", "-q", "--target", client, "-t", tag, "-"]
            subprocess.run(build, input=RECIPE, text=True, check=True, capture_output=True, timeout=200)
        yield {"curl": IMAGE, **built}
    finally:
        subprocess.run(["docker", "rmi", "-f", *built.values()], check=True, capture_output=True)


@pytest.fixture(scope="module")
def rooms(images: dict[str, str]) -> Iterator[dict[str, Room]]:
    engine = DockerEngine(new_id("commands"))
    texts = {f"texts/{number:02}": text for number, text in enumerate(TEXTS)}
    names = {client: f"agentfleet-test-{new_id('box')}" for client in images}
    try:
        sandboxes = {
            client: engine.start(Spec(name=names[client], image=images[client], network="gateway", files=texts))
            for client in images
        }
        (address,) = private_files.read_json(Path(settings.HOME) / "gateway.json")["addresses"]
        yield {client: Room(engine, sandbox, address) for client, sandbox in sandboxes.items()}
    finally:
        for name in names.values():
            engine.remove(name)
            engine.remove_workspace(name)
        engine.remove_networks()
        ready = [engine.prepare_image(image) for image in images.values() if image != IMAGE]
        engine.close()
        subprocess.run(["docker", "rmi", "-f", *ready], check=True, capture_output=True)


@pytest.fixture
def client() -> str:
    return "curl"


@pytest.fixture
def room(rooms: dict[str, Room], client: str) -> Room:
    return rooms[client]


def by_key(asked: Asked) -> Answer:
    """A lock's key, an agent's name or a call's id that is a number is the status to answer with."""
    words = [asked.body.get("resourceKey"), asked.body.get("targetAgent"), asked.path.rpartition("/")[2]]
    number = next((int(word) for word in words if word and word.isdigit()), 200)
    return number, json.dumps({"ok": number == 200, "was": number}, separators=(",", ":"))


CLIENTS_AND_THEIR_LIKE = r"""
find / -xdev -path /var/lib/dpkg -prune -o -type f -perm -100 \( -name 'curl*' -o -name 'python*' -o -name 'wget*' \
  -o -name 'busybox*' -o -name 'nc*' -o -name socat \) -print 2>/dev/null
true
"""


@pytest.mark.parametrize("client", IMAGES)
def test_an_image_has_one_client_and_no_other_anywhere(room: Room, client: str) -> None:
    programs = {path.rpartition("/")[2] for path in room.sh(CLIENTS_AND_THEIR_LIKE).split()}
    assert {re.sub(r"[\d.]+$", "", program) for program in programs} == {client.rstrip("3")} - {"nothing"}


# --- what stands in the contract's tables -------------------------------------------------------------------------

CODES = {200: 0, 409: 1, 404: 2, 403: 3, 400: 4, 503: 5, 413: 7, 422: 7, 502: 10, 504: 11, 500: 12}


@pytest.mark.parametrize("client", CLIENTS)
def test_a_status_becomes_an_exit_code_and_the_body_is_printed(room: Room) -> None:
    names = ["rlock {}", "runlock {}", "rlock-heartbeat {}", "al-call {} </dev/null", "al-check {}"]
    wanted = [(name.format(status), status) for status in CODES for name in (names if status == 409 else names[:1])]
    expected: list[str] = []
    for command, status in wanted:
        body = f'{{"ok":{str(status == 200).lower()},"was":{status}}}'
        expected += [body, f"{command.split()[0]}: {CODES[status]}"]
    with room.stub(by_key):
        assert room.tries(*(command for command, _ in wanted)) == expected


@pytest.mark.parametrize("client", CLIENTS)
def test_each_command_asks_for_what_its_name_says(room: Room, client: str) -> None:
    with room.stub() as stub:
        room.tries(
            "rlock 'a key'",
            "runlock 'a key'",
            "rlock-heartbeat 'a key'",
            "al-call planner </dev/null",
            "al-subagent planner </dev/null",
            "al-check ab-12",
            "al-subagent-check 'a/b?c'",
            "al-status two words",
            "al-rerun",
            "al-return 1 2",
            "al-shutdown",
            "al-shutdown out of order",
        )
    lock, called = {"resourceKey": "a key"}, {"targetAgent": "planner", "context": ""}
    asked = [
        ("/locks/acquire", lock),
        ("/locks/release", lock),
        ("/locks/heartbeat", lock),
        ("/calls", called),
        ("/calls", called),
        ("/calls/ab-12", {}),
        ("/calls/a/b?c", {}),
        ("/signals/status", {"text": "two words"}),
        ("/signals/rerun", {}),
        ("/signals/return", {"value": "1 2"}),
        ("/shutdown", {"reason": "agent requested shutdown"}),
        ("/shutdown", {"reason": "out of order"}),
    ]
    expected = [
        Asked("GET", path, SECRET, {}) if not body and "calls" in path else Asked("POST", path, "", body)
        for path, body in asked
    ]
    posted = [Asked("POST", each.path, "", {**each.body, "secret": SECRET}) for each in expected]
    assert [Asked(each.method, each.path, each.bearer * (each.method == "GET"), each.body) for each in stub.asked] == [
        each if each.method == "GET" else post for each, post in zip(expected, posted, strict=True)
    ]
    assert not [line for line in stub.arguments if SECRET in line]
    assert any(client.replace("busybox", "nc") in line for line in stub.arguments), "nobody has looked"


def test_wrong_use_is_told_before_anybody_is_asked(room: Room) -> None:
    def told(name: str, usage: str, key: str) -> list[str]:
        start = {"status": "error"} if key == "errorMessage" else {} if name.endswith("wait") else {"ok": False}
        return [json.dumps({**start, key: f"usage: {usage}"}, separators=(",", ":")), f"{name}: 9"]

    uses = [
        *(told(name, f"{name} <resourceKey>", "error") for name in ("rlock", "runlock", "rlock-heartbeat")),
        *(told(name, f"echo ctx | {name} <agent>", "reason") for name in ("al-call", "al-subagent")),
        *(told(name, f"{name} <callId>", "errorMessage") for name in ("al-check", "al-subagent-check")),
        *(
            told(name, f"{name} <callId> [callId...] [--timeout N]", "error")
            for name in ("al-wait", "al-subagent-wait", "al-wait", "al-wait", "al-wait", "al-wait")
        ),
        *(told("al-status", 'al-status "<text>"', "error") for _ in range(2)),
        *(told("al-exit", "al-exit [code]", "error") for _ in range(4)),
        *(told("rlock", "rlock <resourceKey>", "error") for _ in range(2)),
    ]
    with room.stub() as stub:
        lines = room.tries(
            *["rlock", "runlock", "rlock-heartbeat", "al-call", "al-subagent", "al-check", "al-subagent-check"],
            *["al-wait", "al-subagent-wait", "al-wait --timeout 5", "al-wait a --timeout", "al-wait a --timeout x"],
            *["al-wait 'a b'", "al-status", "al-status ''", "al-exit one", "al-exit -1", "al-exit 256", "al-exit ''"],
            *["rlock ''", "rlock github issue 42"],
        )
    assert lines == [line for use in uses for line in use]
    assert stub.asked == []


def test_without_a_gateway_locks_are_free_and_calls_are_refused(room: Room) -> None:
    lines = room.tries(
        *["rlock k", "runlock k", "rlock-heartbeat k", "al-call a </dev/null", "al-check a", "al-wait a"],
        *["al-shutdown", "al-status x", "al-rerun", "al-return x", "al-exit"],
        GATEWAY_URL="",
    )
    assert lines == [
        *['{"ok":true}', "rlock: 0", '{"ok":true}', "runlock: 0", '{"ok":true}', "rlock-heartbeat: 0"],
        *['{"ok":false,"reason":"no gateway"}', "al-call: 5"],
        *['{"status":"error","errorMessage":"no gateway"}', "al-check: 5", '{"error":"no gateway"}', "al-wait: 5"],
        *["al-shutdown: 0", '{"ok":true}', "al-status: 0", '{"ok":true}', "al-rerun: 0"],
        *['{"ok":true}', "al-return: 0", '{"ok":true}', "al-exit: 0"],
    ]


@pytest.mark.parametrize("client", CLIENTS)
def test_a_gateway_that_is_not_there_is_exit_code_6_and_stops_no_signal(room: Room) -> None:
    asking = ["rlock k", "al-call a </dev/null", "al-check a"]
    assert room.tries(*asking, "al-shutdown", "al-status x", "al-rerun", "al-return x") == [
        *["rlock: 6", "al-call: 6", "al-check: 6", "al-shutdown: 0"],
        *['{"ok":true}', "al-status: 0", '{"ok":true}', "al-rerun: 0", '{"ok":true}', "al-return: 0"],
    ]
    assert f"no answer from the gateway at {room.url}" in room.sh("cat /tmp/errors; rm /tmp/errors")


@pytest.mark.parametrize("client", ["nothing"])
def test_an_image_without_any_client_says_what_it_lacks(room: Room) -> None:
    tries = "try rlock k; try al-call a </dev/null; try al-check a; try al-wait a; try al-status x; cat /tmp/errors"
    with room.stub() as stub:
        lines = room.sh(tries).splitlines()
    lacking = "this image has no curl, python3, GNU wget or nc"
    assert lines[:-4] == [
        *[f'{{"ok":false,"error":"{lacking}"}}', "rlock: 6", f'{{"ok":false,"reason":"{lacking}"}}', "al-call: 6"],
        *[f'{{"status":"error","errorMessage":"{lacking}"}}', "al-check: 6", f'{{"error":"{lacking}"}}', "al-wait: 6"],
        *['{"ok":true}', "al-status: 0"],
    ]
    assert lines[-4:] == [f"{name}: {lacking}" for name in ("rlock", "al-call", "al-check", "al-wait")]
    assert stub.asked == []


def test_signals_are_left_in_their_files(room: Room) -> None:
    script = """
    AL_SIGNAL_DIR=/tmp/here/signals; export AL_SIGNAL_DIR; cd /tmp
    show() { for f in here/signals/*; do printf '%s=<%s>\\n' "${f##*/}" "$(cat "$f" && echo .)"; done; rm -r here; }
    try al-status 'Reading "it"'; try al-rerun; try al-return a 'b  c'; try al-exit; show
    printf 'line\\nline\\n\\n' | al-return; try al-exit 42; show
    """
    ended = [line for name in ("status", "rerun", "return", "exit") for line in ('{"ok":true}', f"al-{name}: 0")]
    assert room.sh(script, GATEWAY_URL="").splitlines() == [
        *ended,
        *["exit=<15.>", "rerun=<.>", "return=<a b  c.>", 'status=<Reading "it".>'],
        *['{"ok":true}', '{"ok":true}', "al-exit: 0", "exit=<42.>", "return=<line", "line.>"],
    ]


# --- waiting for calls --------------------------------------------------------------------------------------------


class Calls:
    """How calls stand, each time somebody asks; the last answer stays."""

    def __init__(self, **calls: Sequence[Answer]) -> None:
        self._calls = {name.replace("_", "-"): list(answers) for name, answers in calls.items()}

    def __call__(self, asked: Asked) -> Answer:
        answers = self._calls[asked.path.removeprefix("/calls/").partition("?")[0]]
        return answers.pop(0) if len(answers) > 1 else answers[0]


RUNNING: Answer = (200, '{"status":"running"}')
DONE: Answer = (200, '{"status":"completed","returnValue":"said \\"status\\":\\"running\\" {\\n}"}')


@pytest.mark.parametrize("client", CLIENTS)
def test_wait_gives_all_calls_when_all_are_over(room: Room) -> None:
    failed, gone = (200, '{"status":"error","errorMessage":"x"}'), (404, '{"error":"call not found"}')
    with room.stub(Calls(a=[DONE], b=[failed], c=[gone], d=[(403, "no")])) as stub:
        said, end = room.tries("al-wait a b --timeout 60 c a d")
    assert end == "al-wait: 0"
    results = json.loads(said)
    assert list(results) == ["a", "b", "c", "d"]
    assert [results["a"], results["b"], results["c"]] == [json.loads(answer[1]) for answer in (DONE, failed, gone)]
    assert results["d"] == {"status": "error", "errorMessage": "the gateway answered no JSON"}
    assert [(asked.path, asked.bearer) for asked in stub.asked] == [
        (f"/calls/{name}?wait=15", SECRET) for name in ("a", "b", "c", "d")
    ]


def test_wait_asks_again_until_a_call_is_over(room: Room) -> None:
    with room.stub(Calls(a=[(200, '{"status":"pending"}'), RUNNING, DONE])) as stub:
        assert room.tries("al-wait a") == [f'{{"a":{DONE[1]}}}', "al-wait: 0"]
    assert [asked.path for asked in stub.asked] == ["/calls/a?wait=15"] * 3


def test_wait_ends_with_its_time_and_says_what_is_known(room: Room) -> None:
    with room.stub(Calls(a=[RUNNING], b=[DONE])):
        lines = room.tries("al-wait --timeout=1 a b", "al-subagent-wait a b --timeout 0")
    expected = f'{{"a":{RUNNING[1]},"b":{DONE[1]}}}'
    assert lines == [expected, "al-wait: 8", expected, "al-subagent-wait: 8"]


def test_wait_outlives_a_gateway_that_is_started_again(room: Room) -> None:
    waited: list[str] = []
    waiting = threading.Thread(target=lambda: waited.extend(room.tries("al-wait a --timeout 60")))
    with room.stub(Calls(a=[(503, '{"error":"the database does not answer"}'), RUNNING])) as stub:
        waiting.start()
        until(lambda: len(stub.asked) > 1)
    with room.stub(Calls(a=[DONE])):
        waiting.join()
    assert waited == [f'{{"a":{DONE[1]}}}', "al-wait: 0"]


def test_wait_for_a_gateway_that_is_gone_still_prints_json(room: Room) -> None:
    lost = {"status": "error", "errorMessage": "no answer from the gateway"}
    said, end = room.tries("al-wait a b --timeout 1")
    assert (json.loads(said), end) == ({"a": lost, "b": lost}, "al-wait: 8")


# --- variables ----------------------------------------------------------------------------------------------------


def test_setenv_keeps_variables_of_any_text(room: Room) -> None:
    script = """
    AL_ENV_FILE=/tmp/vars.sh; export AL_ENV_FILE; rm -f $AL_ENV_FILE
    try setenv A 1
    try setenv B "it's" C '$(id) `id` "x" \\' setenv D 'two
lines
' setenv E ''
    try setenv; try setenv X; try setenv 1X y; try setenv A-B y; try setenv Y 1 'a b' 2; try setenv Y
    . $AL_ENV_FILE; printf '<%s>' "$A" "$B" "$C" "$D" "$E" "${Y-unset}"; echo
    sh -c 'printf "<%s>\\n" "$B"'
    """
    assert room.sh("rm -f /tmp/errors\n" + script).splitlines() == [
        *["set 1 variable", "setenv: 0", "set 4 variables", "setenv: 0", *["setenv: 1"] * 6],
        *['<1><it\'s><$(id) `id` "x" \\><two', "lines", "><><unset>", "<it's>"],
    ]
    usage = "usage: setenv NAME value [NAME2 value2 ...]"
    invalid = [f"setenv: invalid variable name: {name}" for name in ("1X", "A-B", "a b")]
    assert room.sh("cat /tmp/errors").splitlines() == [usage, usage, *invalid, usage]


@pytest.mark.parametrize(("client", "shell"), [("curl", "bash"), ("curl", "dash"), ("busybox", "sh")])
def test_the_function_setenv_counts_at_once_in_every_shell(room: Room, shell: str) -> None:
    script = """
    rm -f /tmp/vars.sh; export AL_ENV_FILE=/tmp/vars.sh
    for n in 1 2; do
      %s -ec '. al-bash-init.sh; echo "[${N-}]"; setenv N "a'\\''b"; echo "[$N]"; setenv 1 2 || echo no'
    done
    """
    printed = room.sh(script % shell).replace("setenv: invalid variable name: 1\n", "")
    once = "set 1 variable\n[a'b]\nno\n"
    assert printed == f"[]\n{once}[a'b]\n{once}"


# --- any text, through the real gateway ---------------------------------------------------------------------------

SAY = """
cd /workspace/texts
for file in {files}; do
  text=$(cat $file && echo .)
  text=${{text%.}}
  try rlock "$text"; try al-call planner <$file; try al-return "$text"; try al-status "$text"
done
"""


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("client", CLIENTS)
def test_any_text_arrives_byte_for_byte(room: Room, client: str) -> None:
    numbers = range(len(TEXTS)) if client == "curl" else TELLING
    texts = [TEXTS[number].decode("utf-8", "replace") for number in numbers]
    files = " ".join(f"{number:02}" for number in numbers)
    caller = at_work("dev")
    make_agent("planner")
    with room.gateway():
        lines = room.sh(SAY.format(files=files), SHUTDOWN_SECRET=secret_of(caller)).splitlines()
    names = ["rlock", "al-call", "al-return", "al-status"]
    assert lines[1::2] == [f"{name}: 0" for name in names] * len(texts)
    assert {lock.key for lock in Lock.objects.all()} == set(texts)
    called = Run.objects.filter(agent__name="planner").order_by("created_at", "pk")
    assert [run.trigger_context["context"] for run in called] == texts
    assert told(caller, "signal.return", "value") == [text[:1000] for text in texts]
    assert told(caller, "status.text", "text") == [text[:500] for text in texts]
    assert Run.objects.get(pk=caller.run_id).return_value == texts[-1]


def told(attempt: Attempt, event: str, key: str) -> list[str]:
    """What the events of that type say."""
    rows = Event.objects.filter(run_id=attempt.run_id, type=event).order_by("number")
    return [data[key] for data in rows.values_list("data", flat=True)]


# --- each of them, in an image with curl and in one with only python3 ---------------------------------------------

COMMANDS = {script.name for script in BIN.iterdir() if not script.name.startswith("_")} - {"al-bash-init.sh"}
YES = '{"ok":true}'


@dataclass
class Caller:
    """A run at work, and which commands it has used."""

    room: Room
    attempt: Attempt
    used: set[str] = field(default_factory=set)

    @property
    def name(self) -> str:
        return name_of(self.attempt)

    @property
    def run(self) -> Run:
        return Run.objects.get(pk=self.attempt.run_id)

    def tries(self, *commands: str) -> list[str]:
        self.used |= {command.split()[0] for command in commands}
        return self.room.tries(*commands, SHUTDOWN_SECRET=secret_of(self.attempt))


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("client", ["curl", "python3"])
def test_every_command_and_the_real_gateway_understand_each_other(room: Room) -> None:
    first, second = Caller(room, at_work("dev")), Caller(room, at_work("dev"))
    make_agent("planner")
    with room.gateway():
        lock_one_thing(first, second)
        call_another_agent(first, second)
        say_what_becomes_of_the_run(first)
        be_shut_down(second)
        stranger = room.tries("rlock k", "al-check x", SHUTDOWN_SECRET="nobody's")
    assert stranger[1::2] == ["rlock: 3", "al-check: 3"]
    assert first.used | second.used == COMMANDS


def lock_one_thing(first: Caller, second: Caller) -> None:
    key = "github issue acme/app#42"
    mine = first.tries(f"rlock '{key}'", f"rlock-heartbeat '{key}'")
    assert json.loads(mine.pop(2))["expiresAt"] == round(Lock.objects.get().expires_at.timestamp() * 1000)
    assert mine == [compact(ok=True, resourceKey=key), "rlock: 0", "rlock-heartbeat: 0"]
    theirs = second.tries(f"rlock '{key}'", f"runlock '{key}'", "runlock other")
    assert json.loads(theirs.pop(0))["holder"] == first.name
    assert theirs == [
        *["rlock: 1", compact(ok=False, reason=f"held by {first.name}"), "runlock: 1"],
        *[compact(ok=False, reason="lock not found"), "runlock: 2"],
    ]
    assert first.tries(f"runlock '{key}'") == [YES, "runlock: 0"]


def call_another_agent(first: Caller, second: Caller) -> None:
    called = first.tries("al-call planner <<'.'\nthis one\n.", "al-subagent planner </dev/null")
    calls = [json.loads(said)["callId"] for said in called[::2]]
    assert called[1::2] == ["al-call: 0", "al-subagent: 0"]
    assert [context(call) for call in calls] == ["this one\n", ""]
    pending, one, other = {"status": "pending"}, *calls
    assert first.tries(f"al-check {one}", "al-check other", f"al-wait {one} --timeout 0") == [
        *[compact(**pending), "al-check: 0", compact(error="call not found"), "al-check: 2"],
        *[compact(**{one: pending}), "al-wait: 8"],
    ]
    assert second.tries(f"al-check {one}")[1] == "al-check: 2"
    for call in calls:
        ended(agent_calls.run_of(call), "found it")
    done = {"status": "completed", "returnValue": "found it"}
    both = f"{one} {other}"
    assert first.tries(f"al-subagent-check {other}", f"al-wait {both}", f"al-subagent-wait {both}") == [
        *[compact(**done), "al-subagent-check: 0"],
        *[compact(**dict.fromkeys(calls, done)), "al-wait: 0"],
        *[compact(**dict.fromkeys(calls, done)), "al-subagent-wait: 0"],
    ]


def context(call: str) -> str:
    said = Run.objects.get(pk=agent_calls.run_of(call)).trigger_context["context"]
    assert isinstance(said, str)
    return said


def say_what_becomes_of_the_run(caller: Caller) -> None:
    commands = ["al-status", "al-return", "al-rerun", "al-exit"]
    said = caller.tries("al-status 'on it'", "al-return 4 2", "al-rerun", "al-exit 12", "setenv A 1")
    assert said == [*[line for name in commands for line in (YES, f"{name}: 0")], "set 1 variable", "setenv: 0"]
    run = caller.run
    assert (run.status_text, run.return_value, run.rerun_requested) == ("on it", "4 2", True)


def be_shut_down(caller: Caller) -> None:
    killed, end = caller.tries("al-shutdown")
    assert (json.loads(killed)["killed"], end) == (True, "al-shutdown: 0")
    assert caller.tries("rlock k")[1] == "rlock: 3"


def compact(**said: object) -> str:
    """As the gateway writes JSON."""
    return json.dumps(said, separators=(",", ":"))
