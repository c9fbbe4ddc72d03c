"""A whole `agentfleet up` for tests that kill parts of it. Real processes, real engine, ended by process id."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import yaml

from agentfleet import background
from agentfleet.client import Client
from agents import private_files
from runs.sandbox import firewall, network
from tests.doubles.anthropic import MockAnthropic

DATABASE = "agentfleet.sqlite3"
STARTS_WITHIN = 5.0  # seconds from the command to the supervisor's first file

CONFIG = """
kind = "model"
network = "{network}"
models = ["mock"]
scale = {scale}
{extra}
"""


class Box:
    """`with Box(tmp_path, mock) as box:`; `box.agent("dev", "…")` applies one, `box.client` talks to it."""

    def __init__(
        self,
        folder: Path,
        mock: MockAnthropic | None = None,
        *,
        restart: bool = True,
        host: str = "127.0.0.1",
        from_nothing: bool = False,
        **env: str,
    ) -> None:
        """`from_nothing`: its first start makes the tables too, which takes longer than all else of a start."""
        self.home = folder / "home"
        self.project = folder / "project"
        self.restart = restart
        self.host = host
        self.from_nothing = from_nothing
        self.said = ""  # by the last `up`
        self.env = {**os.environ, "AGENTFLEET_HOME": str(self.home), **env}
        for name in ("REDIS_URL", "DATABASE_URL"):
            if name not in env:
                self.env.pop(name, None)
        if mock is not None:
            self.env.update(ANTHROPIC_API_KEY="sk-mock-0123456789", ANTHROPIC_BASE_URL=mock.url)
        self.extra: list[subprocess.Popen[bytes]] = []
        self._agents: dict[str, tuple[str, str]] = {}
        self._scripts: dict[str, str] = {}
        self._client: Client | None = None

    def __enter__(self) -> Self:
        if not (self.from_nothing or "DATABASE_URL" in self.env):
            self.home.mkdir(mode=0o700, exist_ok=True)
            shutil.copyfile(migrated(), self.home / DATABASE)
        try:
            self.up()
        except BaseException:
            take_down(self.home)
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        for process in self.extra:
            process.kill()
            process.wait()
        for pid in self.pids().values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        self._close_client()
        background.down(self.home)
        self._remove_sandboxes()

    def _remove_sandboxes(self) -> None:
        """Those of runs that would go on at the next `up`: there is none."""
        host_id = self.home / "host_id"
        if not host_id.exists():
            return
        containers, volumes = labelled(f"agentfleet.host={host_id.read_text().strip()}")
        for removal, names in ((["docker", "rm", "-f"], containers), (["docker", "volume", "rm", "-f"], volumes)):
            if names:
                subprocess.run([*removal, *names], capture_output=True, check=True)
        remove_networks(host_id.read_text().strip())
        remove_images(host_id.read_text().strip())

    def up(self) -> None:
        words = ["up", "--host", self.host, "--port", "0", "--detach", *([] if self.restart else ["--no-restart"])]
        self.said = self.cli(*words).stdout

    def down(self) -> None:
        assert background.down(self.home)

    @property
    def client(self) -> Client:
        """The same one while the box is up: it keeps connections."""
        known = private_files.read_json(self.home / "client.json")
        if self._client is None or self._client.url != known["url"]:
            self._close_client()
            self._client = Client(known["url"], known["token"])
        return self._client

    def _close_client(self) -> None:
        if self._client is not None:
            self._client.close()

    def pids(self) -> dict[str, int]:
        return private_files.read_json(self.home / "pids.json")

    def worker(self) -> subprocess.Popen[bytes]:
        """One more worker process on the same home."""
        redis = f"unix://{self.home}/redis.sock"
        argv = [sys.executable, "-m", "agentfleet", "worker"]
        with (self.home / "logs" / "worker-2.log").open("ab") as log:
            process = subprocess.Popen(argv, env={**self.env, "REDIS_URL": redis}, stdout=log, stderr=log)
        self.extra.append(process)
        return process

    def agent(
        self,
        name: str,
        instructions: str = "Do it.",
        *,
        scale: int = 1,
        extra: str = "",
        turns: Any = None,
        network: str = "none",
    ) -> None:
        """Add an agent to the project and apply it: on the mock model, or scripted by `turns`."""
        self.define(name, instructions, scale=scale, extra=extra, turns=turns, network=network)
        self.apply()

    def define(
        self,
        name: str,
        instructions: str = "Do it.",
        *,
        scale: int = 1,
        extra: str = "",
        turns: Any = None,
        network: str = "none",
    ) -> None:
        """Add an agent to the project; the next `apply` takes it along."""
        self._agents[name] = (instructions, CONFIG.format(scale=scale, extra=extra, network=network))
        if turns is not None:
            self._scripts[name] = yaml.safe_dump({"turns": turns})
            config = self._agents[name][1].replace('["mock"]', '["script"]')
            self._agents[name] = (instructions, config)

    def apply(self) -> None:
        project = '[models.mock]\nprovider = "anthropic"\nmodel = "claude-sonnet-4-5"\n'
        project += '[models.script]\nprovider = "scripted"\nmodel = "script.yaml"\n'
        project += '[webhooks.github]\ntype = "github"\nsender_rate = "off"\nidentical = "off"\n'
        self.project.mkdir(parents=True, exist_ok=True)
        (self.project / "config.toml").write_text(project)
        for name, (instructions, config) in self._agents.items():
            folder = self.project / "agents" / name
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "SKILL.md").write_text(f"---\ndescription: test\n---\n{instructions}\n")
            (folder / "config.toml").write_text(config)
            if name in self._scripts:
                (folder / "script.yaml").write_text(self._scripts[name])
        self.cli("apply", str(self.project))

    def cli(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "agentfleet", *words]
        done = subprocess.run(argv, env=self.env, capture_output=True, text=True, check=False, timeout=120)
        assert not check or done.returncode == 0, f"agentfleet {' '.join(words)}: {done.stdout}{done.stderr}"
        return done

    def rows(self, query: str, *values: str) -> list[tuple[Any, ...]]:
        """What the database holds, read past everything that serves it."""
        file = (self.home / DATABASE).as_uri()
        with contextlib.closing(sqlite3.connect(f"{file}?mode=ro", uri=True)) as opened:
            return opened.execute(query, values).fetchall()

    def start(self, agent: str, text: str = "go", **fields: Any) -> str:
        return str(self.client.call("POST", f"agents/{agent}/task", {"input": text, **fields})["taskId"])

    def task(self, run_id: str) -> dict[str, Any]:
        task: dict[str, Any] = self.client.call("GET", f"tasks/{run_id}")["task"]
        return task

    def events(self, run_id: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.client.call("GET", f"tasks/{run_id}/events", params={"limit": 5000})[
            "events"
        ]
        return found

    def output(self, run_id: str) -> str:
        return "".join(event["data"]["text"] for event in self.events(run_id) if event["type"] == "output")

    def wait(self, run_id: str, *statuses: str, within: float = 60) -> Any:
        """The task, once its status is one of `statuses` (default: terminal)."""
        wanted = statuses or ("finished", "failed", "canceled")
        return self.until(
            lambda: (task := self.task(run_id))["status"] in wanted and task, within, lambda: self.story(run_id)
        )

    def until(self, what: Callable[[], Any], within: float = 60, story: Callable[[], str] = lambda: "") -> Any:
        end = time.monotonic() + within
        while time.monotonic() < end:
            if value := what():
                return value
            time.sleep(0.05)
        raise AssertionError(f"not within {within} s\n{story()}")

    def story(self, run_id: str) -> str:
        """What happened, for a test that failed."""
        logs = {log.name: log.read_text()[-3000:] for log in (self.home / "logs").glob("*.log")}
        lines = [json.dumps(event) for event in self.events(run_id)]
        return "\n".join(
            [json.dumps(self.task(run_id)), *lines, *(f"--- {name}\n{text}" for name, text in logs.items())]
        )


@functools.cache
def migrated() -> Path:
    """A database with all tables and no rows, for as long as the tests run."""
    home = Path(os.environ["AGENTFLEET_HOME"]) / "migrated"
    home.mkdir(mode=0o700)
    env = {**os.environ, "AGENTFLEET_HOME": str(home), "DJANGO_SETTINGS_MODULE": "agentfleet.settings"}
    env.pop("DATABASE_URL", None)
    subprocess.run([sys.executable, "-m", "django", "migrate", "--verbosity", "0"], env=env, check=True)
    return home / DATABASE


def keep_webhook_secret(home: Path, secret: str) -> None:
    """What GitHub's webhooks to the default source are signed with."""
    place = home / "credentials" / "github_webhook_secret" / "default"
    for folder in (home, home / "credentials", place.parent, place):
        folder.mkdir(mode=0o700, exist_ok=True)
    private_files.write(place / "secret", secret)


def take_down(home: Path) -> None:
    """Also a supervisor that was just being started when its starter was interrupted."""
    end = time.monotonic() + STARTS_WITHIN
    while (home / "up.log").exists() and not (home / "up.json").exists() and time.monotonic() < end:
        time.sleep(0.05)
    background.down(home)


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def standing(run_id: str) -> list[str]:
    """The containers and volumes of a run that the engine has."""
    containers, volumes = labelled(f"agentfleet.run={run_id}")
    return [*containers, *volumes]


def remove_networks(host_id: str) -> None:
    """Those on which a sandbox stood when the last worker ended."""
    listing = ["docker", "network", "ls", "--filter", f"label=agentfleet.host={host_id}", "--format", "{{.Name}}"]
    names = subprocess.run(listing, capture_output=True, text=True, check=True).stdout.split()
    for policy in network.LETTERS:
        if network.name_of(policy, host_id) in names:
            subprocess.run(
                ["docker", "network", "rm", network.name_of(policy, host_id)], capture_output=True, check=True
            )
            firewall.remove(network.bridge_of(policy, host_id))


def labelled(label: str) -> tuple[list[str], list[str]]:
    """The ids of all containers, and the names of all volumes, with that label."""
    lists = (["docker", "ps", "-aq"], ["docker", "volume", "ls", "-q"])
    containers, volumes = (
        subprocess.run(
            [*words, "--filter", f"label={label}"], capture_output=True, text=True, check=True
        ).stdout.split()
        for words in lists
    )
    return containers, volumes


def remove_images(host_id: str) -> None:
    """Those built for agents on that host."""
    ours = ["--filter", f"label=agentfleet.built-by={host_id}"]
    listed = ["docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}", *ours]
    tags = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
    if tags:
        named = [tag for tag in tags if "<none>" not in tag]
        subprocess.run(["docker", "rmi", *named], capture_output=True, check=False)
        subprocess.run(["docker", "image", "prune", "--force", *ours], capture_output=True, check=True)
