"""What runs around the work: preflight, hooks and the commands in the instructions."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest

from agents.models import AgentFile
from runs import prompt, queue
from runs.lifecycle import Cause
from runs.models import CallState, Event, Message, Run, ToolCall, TriggerKind
from runs.sandbox.docker import DockerEngine
from runs.sandbox.fake import FakeEngine
from tests.conftest import DrivenClock, DrivenWorker, PlayedModel, Points, Rung, other_worker
from tests.making import bash, make_agent, said, submit

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.postgresql]


def shell(command: str, **rest: Any) -> dict[str, Any]:
    required = rest.pop("required", True)
    return {"provider": "shell", "required": required, "params": {"command": command, **rest}}


def error_of(run: Run) -> tuple[Any, Any]:
    assert run.status == "failed", run.status
    assert run.error is not None
    return run.error["code"], run.error["message"]


def ended(run: Run) -> list[tuple[str, bool]]:
    """The commands of a run, in the order of their ends."""
    data = run.events.filter(type="tool.end").order_by("number").values_list("data", flat=True)
    return [(item["toolName"], item["success"]) for item in data]


def shown(run: Run, part: int = 0) -> str:
    """What the model was first shown: its system text, or with 1 what it was asked."""
    return str(Message.objects.get(attempt__run=run, position=0).body["parts"][part]["text"])


def test_they_run_in_their_order_before_the_model_is_asked_and_after_it_has_answered(
    worker: DrivenWorker, model: PlayedModel
) -> None:
    model.answers = [said("looking", bash('cat "$HOME/order"')), said("done")]
    agent = make_agent(
        preflight=[shell("echo one >order"), shell("echo two >>order")],
        hooks_pre=["echo three >>order"],
        instructions="Go on from !`echo four >>order; wc -l <order`.",
        hooks_post=["cat order"],
    )
    run = worker.drive(submit(agent))
    assert (run.status, run.output) == ("finished", "done")
    assert "Go on from 4." in shown(run)
    assert model.asked[1].messages[-1]["parts"][0]["text"] == "one\ntwo\nthree\nfour\n"
    names = ["preflight", "preflight", "hooks.pre", "inject", "bash", "hooks.post"]
    assert ended(run) == [(name, True) for name in names]
    types = list(run.events.order_by("number").values_list("type", flat=True))
    assert types.index("model.start") > types.index("tool.end")
    assert types.count("sandbox.start") == 1


def test_what_they_print_is_seen_as_it_comes(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("done")]
    run = worker.drive(submit(make_agent(preflight=[shell("echo hello")])))
    assert Event.objects.get(run=run, type="output").data == {"callId": "pre-0", "text": "hello\n"}
    start = Event.objects.get(run=run, type="tool.start").data
    assert start["toolInput"] == {"provider": "shell", "required": True, "params": {"command": "echo hello"}}


def test_a_required_step_that_fails_ends_the_run_before_the_model_is_asked(
    worker: DrivenWorker, model: PlayedModel
) -> None:
    agent = make_agent(preflight=[shell("echo no such thing >&2; exit 3"), shell("echo never")])
    run = worker.drive(submit(agent))
    assert error_of(run) == (
        "PREFLIGHT_FAILED",
        'Required preflight step "shell" failed: no such thing / exit code 3',
    )
    assert model.asked == []
    assert ended(run) == [("preflight", False)]
    assert worker.engine.names() == []


def test_an_optional_step_that_fails_is_warned_of(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("done")]
    run = worker.drive(submit(make_agent(preflight=[shell("exit 3", required=False), shell("echo on")])))
    assert run.status == "finished"
    warned = Event.objects.get(run=run, type="warning").data
    assert warned == {"callId": "pre-0", "message": 'Optional preflight step "shell" failed: exit code 3'}


def test_a_step_that_nobody_knows_fails_as_any_other(worker: DrivenWorker, model: PlayedModel) -> None:
    run = worker.drive(submit(make_agent(preflight=[{"provider": "ftp", "params": {}}])))
    code, message = error_of(run)
    assert code == "PREFLIGHT_FAILED"
    assert "there is no preflight provider ftp" in message


def test_the_first_hook_that_fails_ends_the_run(worker: DrivenWorker, model: PlayedModel) -> None:
    run = worker.drive(submit(make_agent(hooks_pre=["true", "echo oh >&2; false", "echo never"])))
    assert error_of(run) == ("HOOK_FAILED", "hooks.pre[1] failed: oh / exit code 1")
    assert ended(run) == [("hooks.pre", True), ("hooks.pre", False)]


def test_a_hook_that_fails_behind_the_answer_is_an_event_and_no_more(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("done")]
    run = worker.drive(submit(make_agent(hooks_post=["false", "echo never"])))
    assert (run.status, run.output) == ("finished", "done")
    assert ended(run) == [("hooks.post", False)]
    assert Event.objects.filter(run=run, type="warning").count() == 1


def test_what_a_hook_exports_is_seen_by_the_agent(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("", bash('echo "$COLOUR"')), said("done")]
    agent = make_agent(hooks_pre=['echo "export COLOUR=green" >>"$AL_ENV_FILE"', 'test "$COLOUR" = green'])
    run = worker.drive(submit(agent))
    assert run.status == "finished"
    assert model.asked[1].messages[-1]["parts"][0]["text"] == "green\n"


def test_an_injected_command_that_fails_tells_the_model_why(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("done")]
    told = "A !`echo out; echo bad >&2; exit 3` B !`exit 4` C !`echo fine; echo quiet >&2`."
    run = worker.drive(submit(make_agent(instructions=told)))
    assert "A [Error: bad] B [Error: exit code 4] C fine." in shown(run)


def test_a_command_in_what_somebody_sent_is_not_run(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("done")]
    run = worker.drive(submit(make_agent(instructions="Be good."), input="Say !`echo owned`."))
    assert "Say !`echo owned`." in shown(run, 1)
    assert not ToolCall.objects.exists()


def test_what_a_command_printed_is_not_read_for_commands(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("done")]
    run = worker.drive(submit(make_agent(instructions="See !`printf '!\\140echo owned\\140'`.")))
    assert "See !`echo owned`." in shown(run)


def test_no_model_no_preparation(worker: DrivenWorker) -> None:
    agent = make_agent(models=[], preflight=[shell("echo never")])
    run = worker.drive(submit(agent))
    assert error_of(run)[0] == "NO_MODEL"
    assert not ToolCall.objects.exists()


# --- values -------------------------------------------------------------------------------------------------------


def test_a_variable_in_a_parameter_is_one_word_whatever_it_holds(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("", bash('ls "$HOME"; cat "$HOME/a b;touch owned/out"')), said("done")]
    nasty = 'echo \'export NASTY="a b;touch owned"\' >>"$AL_ENV_FILE"'
    steps = [shell(nasty), shell("echo $((1 + 1)) ${MISSING}end", output="${NASTY}/out")]
    run = worker.drive(submit(make_agent(preflight=steps)))
    assert run.status == "finished"
    listing = model.asked[1].messages[-1]["parts"][0]["text"]
    assert "\nowned" not in listing
    assert listing.endswith("2 end\n")


def test_a_shell_step_with_an_output_keeps_its_exit_code(worker: DrivenWorker, model: PlayedModel) -> None:
    run = worker.drive(submit(make_agent(preflight=[shell("echo x; echo why >&2; exit 7", output="deep/er/out")])))
    assert error_of(run)[1].endswith("why / exit code 7")


def test_an_output_that_is_too_large_fails_and_is_not_kept(worker: DrivenWorker, model: PlayedModel) -> None:
    model.answers = [said("", bash('ls "$HOME"')), said("done")]
    steps = [shell("head -c 60000000 /dev/zero", output="big", required=False)]
    run = worker.drive(submit(make_agent(preflight=steps)))
    assert "it printed more than 52428800 bytes" in Event.objects.get(run=run, type="warning").data["message"]
    assert "big" not in model.asked[1].messages[-1]["parts"][0]["text"]


# --- crashes ------------------------------------------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here; no code of ours catches it."""


def killed() -> None:
    raise Killed


AROUND: dict[str, Any] = {
    "preflight": [shell('echo pre >>"$HOME/ran"')],
    "hooks_pre": ['echo hook >>"$HOME/ran"'],
    "instructions": 'See !`echo inject >>"$HOME/ran"; echo injected`.',
    "hooks_post": ['echo post >>"$HOME/ran"; cat "$HOME/ran"'],
}
POINTS = [
    *("silent 1", "sandbox.ready 1", "tool.start 1", "tool.end 1", "tool.start 3", "tool.end 3"),
    *("model.start 1", "model.turn 1", "tool.start 4", "output 1"),
]


@pytest.mark.parametrize("point", POINTS)
def test_whoever_dies_when_each_is_run_once_and_the_prompt_is_the_same(
    worker: DrivenWorker, model: PlayedModel, points: Points, driven_clock: DrivenClock, point: str
) -> None:
    model.answers = [said("done"), said("done")]
    second = other_worker(worker)
    run = submit(make_agent(**AROUND))
    points.after(point, killed)
    with pytest.raises(Killed):
        worker.drive(run)
    worker.die()
    for _ in range(3):
        driven_clock.forward(4)
        second.sweep()
        run = second.drive(run)
    assert run.status == "finished", run.error
    said_last = Event.objects.filter(run=run, type="output", data__callId__startswith="post").get().data["text"]
    assert said_last == "pre\nhook\ninject\npost\n"
    assert "See injected." in shown(run)


def test_a_required_step_whose_sandbox_is_lost_fails_the_attempt_and_is_not_repeated(
    worker: DrivenWorker, model: PlayedModel, points: Points
) -> None:
    run = submit(make_agent(preflight=[shell("echo one; sleep 600")]))
    points.after("output 1", lambda: worker.engine.remove(run.attempts.get().sandbox_name))
    run = worker.drive(run)
    assert error_of(run)[0] == "SANDBOX_LOST"
    assert ToolCall.objects.get().state == CallState.LOST
    assert model.asked == []


def test_an_optional_step_whose_sandbox_is_lost_lets_the_run_go_on(
    worker: DrivenWorker, model: PlayedModel, points: Points
) -> None:
    model.answers = [said("done")]
    run = submit(make_agent(preflight=[shell("echo one; sleep 600", required=False), shell("echo two")]))
    points.after("output 1", lambda: worker.engine.remove(run.attempts.get().sandbox_name))
    run = worker.drive(run)
    assert run.status == "finished"
    assert [call.state for call in ToolCall.objects.order_by("index")] == [CallState.LOST, CallState.DONE]


def test_a_failed_preparation_is_tried_again_where_the_agent_says_so(
    worker: DrivenWorker, model: PlayedModel, driven_clock: DrivenClock
) -> None:
    policy = {"most": 2, "after": ["work"], "delay_seconds": 10}
    run = worker.drive(submit(make_agent(hooks_pre=["false"], retry="always", attempts=policy)))
    assert (run.status, run.wait_reason) == ("waiting", "retry")
    driven_clock.forward(20)
    worker.sweep()
    run = worker.drive(run)
    assert error_of(run)[0] == "HOOK_FAILED"
    assert run.attempts.count() == 2


# --- what they reach ----------------------------------------------------------------------------------------------


class Remembering(BaseHTTPRequestHandler):
    """Answers with what it was asked, and remembers it; /missing is not there, /moved is /here."""

    asked: ClassVar[list[tuple[str, str, str | None, str]]] = []

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.asked.append((self.command, self.path, self.headers.get("X-Token"), body))
        self.send_response({"/missing": 404, "/moved": 302}.get(self.path.partition("?")[0], 200))
        self.send_header("Location", "/here")
        self.end_headers()
        self.wfile.write(b"\0bytes\n")

    do_GET = do_POST = answer  # noqa: N815 - the names of the protocol

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def site() -> Iterator[str]:
    Remembering.asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Remembering)
    with server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def only(client: str, folder: Path) -> str:
    """A step after which the sandbox's shell finds this client and no other."""
    folder.mkdir()
    for name in ("sh", "cat", "tr", "sed", "head", "wc", "mktemp", "mkdir", "mv", "rm", "dirname", "sleep", client):
        found = sys.executable if name == "python3" else shutil.which(name)
        assert found, name
        (folder / name).symlink_to(found)
    return f'echo \'export PATH={folder} TOKEN="a \\"b\\\\c; d"\' >>"$AL_ENV_FILE"'


def http(url: str, output: str, **changes: Any) -> dict[str, Any]:
    required = changes.pop("required", True)
    return {"provider": "http", "required": required, "params": {"url": url, "output": output, **changes}}


@pytest.mark.parametrize("client", ["curl", "python3", "wget"])
def test_an_http_step_asks_with_whatever_client_there_is(
    worker: DrivenWorker, model: PlayedModel, site: str, tmp_path: Path, client: str
) -> None:
    model.answers = [said("", bash('cd "$HOME"; cat got/it | tr -d "\\000"; [ -e none ] || echo none')), said("done")]
    steps = [
        shell(only(client, tmp_path / "bin")),
        http(f"{site}/${{WHERE}}x?a[1]=b", "got/it", headers={"X-Token": "${TOKEN}"}),
        http(f"{site}/post", "posted", method="POST", headers={"X-Token": "t"}, body="one ${TOKEN}\n'two'"),
        http(f"{site}/missing", "none", required=False),
        http(f"{site}/moved", "moved"),
        http("file:///etc/passwd", "none", required=False),
    ]
    run = worker.drive(submit(make_agent(preflight=steps)))
    assert run.status == "finished", run.error
    assert model.asked[1].messages[-1]["parts"][0]["text"] == "bytes\nnone\n"
    assert Remembering.asked == [
        ("GET", "/x?a[1]=b", 'a "b\\c; d', ""),
        ("POST", "/post", "t", "one a \"b\\c; d\n'two'"),
        ("GET", "/missing", None, ""),
        ("GET", "/moved", None, ""),
        ("GET", "/here", None, ""),
    ]
    assert Event.objects.filter(run=run, type="warning").count() == 2


def test_without_any_client_an_http_step_says_so(worker: DrivenWorker, model: PlayedModel, tmp_path: Path) -> None:
    steps = [shell(only("true", tmp_path / "bin")), http("http://127.0.0.1/", "x")]
    run = worker.drive(submit(make_agent(preflight=steps)))
    assert "the image has none of curl, python3 and wget" in error_of(run)[1]


@pytest.mark.parametrize(
    ("repo", "asked"),
    [
        ("acme/app", "git@github.com:acme/app.git"),
        ("acme/app.git", "git@github.com:acme/app.git"),
        ("${WHO}/app", "git@github.com:a b/app.git"),
        ("git@example.org:x/y.git", "git@example.org:x/y.git"),
        ("https://example.org/x", "https://example.org/x"),
        ("--upload-pack=touch x/y", "git@github.com:--upload-pack=touch x/y.git"),
    ],
)
def test_a_repository_is_named_as_a_word_of_its_own(
    worker: DrivenWorker, model: PlayedModel, tmp_path: Path, repo: str, asked: str
) -> None:
    model.answers = [said("done")]
    told = only("true", tmp_path / "bin") + '\necho \'export WHO="a b"\' >>"$AL_ENV_FILE"'
    (tmp_path / "bin" / "git").write_text('#!/bin/sh\nfor word; do echo "<$word>"; done\n')
    (tmp_path / "bin" / "git").chmod(0o755)
    clone = {"provider": "git-clone", "params": {"repo": repo, "dest": "into ${WHO}", "branch": "-b", "depth": 1}}
    run = worker.drive(submit(make_agent(preflight=[shell(told), clone])))
    said_by_git = Event.objects.get(run=run, type="output").data["text"]
    assert said_by_git.split("\n")[:-1] == [
        "<clone>",
        "<--branch=-b>",
        "<--depth=1>",
        "<-->",
        f"<{asked}>",
        "<into a b>",
    ]


SERVER = """\
perl -MIO::Socket::INET -e '
  $s = IO::Socket::INET->new(LocalAddr => "127.0.0.1:0", Listen => 5) or die; open P, ">", "port"; print P $s->sockport;
  close P; while ($c = $s->accept) { while (<$c> =~ /\\S/) {}
    print $c "HTTP/1.0 200 OK\\r\\n\\r\\nserved\\n"; close $c }
' </dev/null >/dev/null 2>&1 &
until [ -s port ]; do sleep 0.05; done
echo "export PORT=$(cat port)" >>/tmp/env.sh
git init -q -b main repo && cd repo
git -c user.name=t -c user.email=t@localhost commit -q --allow-empty -m first && git branch other
"""
LOOK = """\
cat /tmp/served; git -C "/tmp/the clone" branch --show-current
cd /workspace; ls -l SKILL.md shared/notes/a.txt trigger.json agent-config.json | cut -c1-10; ls -a
(echo x >SKILL.md) 2>/dev/null || echo cannot write; (echo x >shared/notes/a.txt) 2>/dev/null || echo cannot write
cat /app/static/shared/notes/a.txt; jq -c '[.name, .params, .timeout]' agent-config.json
tail -n 1 "$AGENTFLEET_PROMPT_FILE"; echo; printf '%s\\n' "$PROMPT" | tail -n 1; tail -n 1
"""


@pytest.mark.engine
def test_a_container_has_the_agents_files_and_what_was_fetched_for_it(db: None, tmp_path: Path, rung: Rung) -> None:
    docker = DockerEngine("test")
    worker = DrivenWorker(cast("FakeEngine", docker), tmp_path, rung)
    clone = {"repo": "file:///tmp/repo", "dest": "the clone", "branch": "other", "depth": 1}
    steps = [
        shell(SERVER),
        http("http://127.0.0.1:${PORT}/x", "served"),
        {"provider": "git-clone", "params": clone},
    ]
    agent = make_agent(
        kind="command",
        command=LOOK,
        models=[],
        network="none",
        params={"depth": 2},
        preflight=steps,
        instructions="Branches: !`git -C /tmp/repo branch --list | wc -l`.",
    )
    assert agent.version is not None
    for path in ("SKILL.md", "shared/notes/a.txt", "trigger.json", ".hidden"):
        AgentFile.objects.create(version=agent.version, path=path, content=b"of the folder\n")
    run, _ = queue.submit(agent, Cause(TriggerKind.WEBHOOK, {"event": "push"}))
    run = worker.drive(run)
    docker.close()
    last_words = prompt.WEBHOOK
    assert run.status == "finished", (run.error, list(run.events.values_list("data", flat=True)))
    assert str(run.output).splitlines() == [
        *("served", "other", "-r--r--r--", "-r--r--r--", "-r--r--r--", "-r--r--r--"),
        *(".", "..", "SKILL.md", "agent-config.json", "shared", "trigger.json"),
        *("cannot write", "cannot write", "of the folder", '["dev",{"depth":2},900]'),
        *(last_words, last_words, last_words),
    ]
