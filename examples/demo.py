"""`make demo`: the whole way of one webhook, on this machine, in a home that goes away.

Starts an installation, applies examples/triage, posts GitHub's own example of a new issue, signed, and shows the run
as it happens. Ends 0 only if the run finished with the result it should have.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from agentfleet import background, children, show
from agentfleet.client import Client, NoServer, ServerSays
from runs.sandbox.base import SandboxError
from runs.sandbox.docker import DockerEngine

HERE = Path(__file__).parent
RESULT = "Triaged Codertocat/Hello-World#1:"
console = Console(highlight=False, soft_wrap=True)


class DemoFailed(Exception):
    """Says what did not happen."""


def main() -> int:
    home = Path(tempfile.mkdtemp(prefix="agentfleet-demo-"))
    os.environ["AGENTFLEET_HOME"] = str(home)
    for name in ("AGENTFLEET_URL", "AGENTFLEET_TOKEN", "DATABASE_URL", "REDIS_URL"):
        os.environ.pop(name, None)
    try:
        demo(home)
    except (DemoFailed, ServerSays, NoServer, children.CannotStart) as error:
        console.print(f"\nthe demo failed: {error}", style="bold red")
        return 1
    except KeyboardInterrupt:
        console.print("\ninterrupted", style="bold red")
        return 130
    finally:
        with stage("stopping it all"):
            background.down(home)
            remove_sandboxes(home)
            shutil.rmtree(home, ignore_errors=True)
    console.print("\nKeep it running: make up     (it prints a link that logs you in, once)")
    console.print("Give it your own agents:     .venv/bin/agentfleet apply FOLDER")
    return 0


def demo(home: Path) -> None:
    secret = secrets.token_hex(20)
    place = home / "credentials" / "github_webhook_secret" / "default"
    for folder in (home, home / "credentials", place.parent, place):
        folder.mkdir(mode=0o700, exist_ok=True)
    (place / "secret").touch(mode=0o600)
    (place / "secret").write_text(secret)
    with stage(f"starting agentfleet in {home}"):
        agentfleet("up", "--port", "0", "--detach")
    client = Client.of(home)
    with stage("applying examples/triage"):
        agentfleet("apply", str(HERE / "triage"))
    with stage("posting GitHub's example of a new issue, signed"):
        run_id = post_issue(client.url, secret)
    console.print(f"\n[bold]{run_id}[/bold]  {client.url}/admin/runs/run/{run_id}/change/\n")
    began = time.monotonic()
    events = list(shown(client, run_id))
    task = client.call("GET", f"tasks/{run_id}")["task"]
    if task["status"] != "finished":
        raise DemoFailed(f"the run is {task['status']}, not finished: {task['error']}")
    if not task["output"].startswith(RESULT):
        raise DemoFailed(f"the result does not begin with {RESULT!r}")
    report(home, client.url, events, time.monotonic() - began)


def remove_sandboxes(home: Path) -> None:
    """Those of this home. A run would go on at the next `up`, so `down` leaves it its sandbox; here is no next."""
    host_id = home / "host_id"
    if not host_id.exists():
        return
    os.environ["DJANGO_SETTINGS_MODULE"] = "agentfleet.settings"
    engine = DockerEngine(host_id.read_text().strip())
    with contextlib.suppress(SandboxError), contextlib.closing(engine):
        for name in {*engine.names(), *started}:
            engine.remove(name)
            engine.remove_workspace(name)


def agentfleet(*words: str) -> None:
    argv = [sys.executable, "-m", "agentfleet", *words]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DemoFailed(f"agentfleet {words[0]}: {done.stderr.strip().removeprefix('agentfleet: ')}")


def post_issue(url: str, secret: str) -> str:
    """Send the payload as GitHub would; the run it started."""
    body = (HERE / "triage" / "issue-opened.json").read_bytes()
    signature = hmac.new(secret.encode(), body, hashlib.sha256).hexdigest()
    headers = {
        "Content-Type": "application/json",
        "X-GitHub-Event": "issues",
        "X-GitHub-Delivery": secrets.token_hex(16),
        "X-Hub-Signature-256": f"sha256={signature}",
    }
    answer = httpx.post(f"{url}/webhooks/github", content=body, headers=headers, trust_env=False)
    said = answer.json()
    if answer.status_code != httpx.codes.OK or said.get("matched") != 1:
        raise DemoFailed(f"the webhook was answered {answer.status_code} {said}")
    run_id = str(said["runs"][0])
    started.append(f"agentfleet-{run_id}-1")
    return run_id


def shown(client: Client, run_id: str) -> Iterator[dict[str, Any]]:
    for event in client.follow(run_id):
        show.event(event)
        yield event


def report(home: Path, url: str, events: list[dict[str, Any]], seconds: float) -> None:
    """What ran where, and how long each part took."""
    calls = [event["data"] for event in events if event["type"] == "tool.end"]
    sandbox = next(event["data"] for event in events if event["type"] == "sandbox.ready")
    model = next(event["data"]["model"] for event in events if event["type"] == "model.start")
    console.print(f"\nweb, worker, schedules, Redis  on this machine, {url}")
    console.print(f"database, keys, logs           {home}")
    console.print(f"model                          {model}")
    console.print(
        f"commands                       container {sandbox['id'][:12]}: no network, read-only root, uid 1000"
    )
    console.print(f"{len(calls)} tool calls took {sum(call['durationMs'] for call in calls)} ms of {seconds:.1f} s\n")
    for name, took in stages.items():
        console.print(f"{took:6.1f} s  {name}")
    console.print(f"{seconds:6.1f} s  the run")


stages: dict[str, float] = {}
started: list[str] = []  # sandboxes whose container may be gone and whose volume may not


@contextlib.contextmanager
def stage(name: str) -> Iterator[None]:
    console.print(f"{name} …", style="dim")
    began = time.monotonic()
    yield
    stages[name] = time.monotonic() - began


if __name__ == "__main__":
    raise SystemExit(main())
