"""What preflight steps fetch, with which clients, and what a container finds when its program starts."""

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
from runs.models import Event, TriggerKind
from runs.sandbox.docker import DockerEngine
from runs.sandbox.fake import FakeEngine
from tests.conftest import DrivenWorker, PlayedModel, Rung
from tests.making import bash, make_agent, said, submit
from tests.test_setup_steps import error_of, shell

pytestmark = pytest.mark.django_db(transaction=True)


class Remembering(BaseHTTPRequestHandler):
    """Answers with what it was asked, and remembers it; /missing is not there, /moved is /here."""

    asked: ClassVar[list[tuple[str, str, str | None, str]]] = []

    def answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
        self.asked.append((self.command, self.path, self.headers.get("X-Token"), body))
        self.send_response({"/missing": 404, "/moved": 302}.get(self.path.partition("?")[0], 200))
        content = b"" if self.path == "/moved" else b"\0bytes\n"
        self.send_header("Location", "/here")
        self.send_header("Content-Length", str(len(content)))  # without it wget now and then does not follow
        self.end_headers()
        self.wfile.write(content)

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
