"""The doctor's checks one by one: what each takes for well, and what it says and advises where something is wrong."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import certifi
import pytest
from django.conf import LazySettings

from agentfleet import background, doctor, own_redis, ports, up
from agentfleet.doctor import files
from agentfleet.doctor.findings import Check, Place
from agents import clock, private_files
from agents.models import Schedule
from runs.models import Host
from runs.sandbox.base import EngineDown, ImageMissing, Refused
from tests.making import make_agent

CLAUDE = {"provider": "anthropic", "model": "claude-sonnet-4-5"}
SCRIPTED = {"provider": "scripted", "model": "script.yaml"}


class Usage(NamedTuple):
    """As shutil tells it, in bytes."""

    total: int
    used: int
    free: int


class Engine:
    """As far as the doctor asks one: it answers, and has every image."""

    def __init__(self, host_id: str) -> None:
        self.host_id = host_id

    def ping(self) -> str:
        return "Docker 99.0"

    def prepare_image(self, image: str) -> str:
        return image

    def try_network(self, policy: str) -> None:
        """As a host that has all it takes for one."""


class DeadEngine(Engine):
    def ping(self) -> str:
        raise EngineDown("the container engine does not answer: no such file")

    def prepare_image(self, image: str) -> str:
        raise ImageMissing(f"No such image: {image}: build it (`make image`) or pull it on this host")


class UnprivilegedEngine(Engine):
    def try_network(self, policy: str) -> None:
        raise Refused("the host filter cannot be set (you must be root); run the worker as root")


@pytest.fixture(autouse=True)
def _an_engine_that_answers(settings: LazySettings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.SANDBOX_ENGINE = f"{__name__}.Engine"
    monkeypatch.delenv("REDIS_URL", raising=False)


@pytest.fixture
def home(settings: LazySettings, tmp_path: Path) -> Path:
    """An installation that was up once and is down."""
    folder = tmp_path / "home"
    (folder / "credentials").mkdir(parents=True, mode=0o700)
    folder.chmod(0o700)
    settings.HOME = folder
    return folder


def checked(home: Path, name: str, *, port: int = 0) -> Check:
    """What the doctor says of one thing."""
    return next(check for check in doctor.examine(home, port or ports.free_port()) if check.name == name)


def pretend_up(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """This very process stands for the supervisor and its children, all long since started."""
    me = os.getpid()
    private_files.write_json(home / "up.json", {"pid": me, "started": background.started_at(me)})
    private_files.write_json(home / "pids.json", dict.fromkeys((*up.ROLES, "supervisor"), me))
    monkeypatch.setattr(Place, "worker_is_new", lambda place: False)


def test_where_there_is_nothing_it_says_so_makes_nothing_and_sets_up_no_django(tmp_path: Path) -> None:
    home = tmp_path / "home"
    program = (
        "from pathlib import Path; from agentfleet import doctor; from django.apps import apps\n"
        f"for check in doctor.examine(Path({str(home)!r}), {ports.free_port()}):\n"
        "    print(check.ok, check.name, check.says)\n"
        "assert not apps.ready"
    )
    env = {
        **os.environ,
        "AGENTFLEET_HOME": str(home),
        "DOCKER_HOST": f"unix://{tmp_path}/nobody.sock",
        "REDIS_URL": f"redis://127.0.0.1:{ports.free_port()}/0",
    }
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = {line.split()[1]: line for line in done.stdout.splitlines()}
    assert said["home"] == f"True home there is none at {home}: `agentfleet up` makes it"
    assert said["database"].startswith("True database there is none yet")
    assert said["processes"] == "True processes agentfleet is not up: `agentfleet up` starts it"
    assert said["engine"].startswith("False engine the container engine does not answer")
    assert said["redis"].startswith("False redis it does not answer")
    assert list(tmp_path.iterdir()) == []


def test_an_installation_that_is_down_and_well(home: Path, db: None) -> None:
    checks = doctor.examine(home, ports.free_port())
    assert [check for check in checks if not check.ok] == []
    assert [check.name for check in checks] == [
        *("home", "credentials", "engine", "image", "redis", "database", "port", "processes", "networks", "model keys")
    ]


def test_without_a_program_to_start_redis_is_wrong(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(own_redis, "find_spec", lambda name: None)
    told = checked(home, "redis")
    assert not told.ok
    assert told.says.startswith("no Redis: install redis-server")


def test_a_redis_url_that_is_none_is_wrong(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "nonsense")
    told = checked(home, "redis")
    assert not told.ok
    assert told.says.endswith("start it, or mend REDIS_URL")


def test_an_engine_that_does_not_answer_and_an_image_that_is_missing(home: Path, settings: LazySettings) -> None:
    assert checked(home, "engine") == Check("engine", True, "Docker 99.0")
    settings.SANDBOX_ENGINE = f"{__name__}.DeadEngine"
    settings.SANDBOX_IMAGE = "nosuch:1"
    told = checked(home, "engine")
    assert (told.ok, told.says.endswith("no such file: start the engine, or set DOCKER_HOST")) == (False, True)
    told = checked(home, "image")
    assert (told.ok, "nosuch:1: build it (`make image`)" in told.says) == (False, True)


def test_a_network_that_cannot_be_had_is_wrong_where_an_agent_needs_one(
    home: Path, settings: LazySettings, db: None
) -> None:
    (home / "agentfleet.sqlite3").touch()
    settings.SANDBOX_ENGINE = f"{__name__}.UnprivilegedEngine"
    make_agent("alone", network="none")
    make_agent("talker", network="gateway", tools=["ask"])
    assert checked(home, "networks") == Check("networks", True, "no agent needs one yet")
    make_agent("writer", network="gateway")
    told = checked(home, "networks")
    assert not told.ok
    assert told.says.startswith('writer cannot run with network = "gateway": the host filter cannot be set')
    settings.SANDBOX_ENGINE = f"{__name__}.Engine"
    assert checked(home, "networks") == Check("networks", True, "gateway: can be had")


def test_a_home_that_others_can_read(home: Path) -> None:
    home.chmod(0o755)
    assert checked(home, "home") == Check("home", False, f"{home} is open to others (mode 755): chmod 700 {home}")


def test_a_home_that_is_no_folder_or_somebody_elses(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = home / "file"
    file.touch()
    assert "is not a folder: choose another" in checked(file, "home").says
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    assert checked(home, "home").says.startswith(f"{home} belongs to another user: choose another")


def test_a_disk_that_is_nearly_full(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(10**12, 0, 100 * 1024**2))
    told = checked(home, "home")
    assert (told.ok, told.says.startswith(f"only 100 MiB are free at {home}: make room")) == (False, True)


def test_a_credential_that_others_can_read_is_named_with_the_mend(home: Path) -> None:
    place = home / "credentials" / "github_webhook_secret" / "default"
    place.mkdir(parents=True, mode=0o700)
    place.parent.chmod(0o700)
    private_files.write(place / "secret", "sk-very-secret")
    assert checked(home, "credentials") == Check("credentials", True, "1 files, none open to others")
    (place / "secret").chmod(0o644)
    told = checked(home, "credentials")
    assert (told.ok, told.says.endswith(f"chmod 600 {place}/secret")) == (False, True)
    assert "sk-very-secret" not in told.says


def test_an_extra_ca_file_is_read_as_the_sandboxes_will(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "extra CA" not in [check.name for check in doctor.examine(home, ports.free_port())]
    monkeypatch.setenv("AGENTFLEET_EXTRA_CA_FILE", certifi.where())
    told = checked(home, "extra CA")
    assert (told.ok, told.says.endswith(" certificates")) == (True, True)
    hidden = home / "hidden.pem"
    private_files.write(hidden, Path(certifi.where()).read_text())
    monkeypatch.setenv("AGENTFLEET_EXTRA_CA_FILE", str(hidden))
    assert checked(home, "extra CA").says == f"{hidden} cannot be read by the user of sandboxes: chmod o+r {hidden}"
    garbage = home / "ca.pem"
    garbage.write_text("no certificate")
    for file in (garbage, home / "missing.pem"):
        monkeypatch.setenv("AGENTFLEET_EXTRA_CA_FILE", str(file))
        told = checked(home, "extra CA")
        assert (told.ok, told.says.startswith(f"{file} has no certificates")) == (False, True)


@pytest.mark.parametrize("words", [["worker"], ["up", "--port", "0"]])
def test_nothing_starts_without_the_certificates_it_is_told_to_add(tmp_path: Path, words: list[str]) -> None:
    home, file = tmp_path / "home", tmp_path / "gone.pem"
    env = {**os.environ, "AGENTFLEET_HOME": str(home), "AGENTFLEET_EXTRA_CA_FILE": str(file)}
    argv = [sys.executable, "-m", "agentfleet", *words]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.startswith(f"agentfleet: {file} has no certificates")) == (1, True)
    assert not any(home.iterdir())


@pytest.mark.parametrize("content", [b"", b"no database at all" * 100])
def test_a_database_file_that_is_none_is_wrong(home: Path, content: bytes, db: None) -> None:
    (home / "agentfleet.sqlite3").write_bytes(content)
    told = checked(home, "database")
    assert not told.ok
    assert told.says.endswith("run `agentfleet up`, or put a backup in its place")
    assert (home / "agentfleet.sqlite3").read_bytes() == content


def test_a_port_that_something_else_has(home: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = checked(home, "port", port=port)
    assert told == Check("port", False, f"port {port} is in use by something else: stop it, or choose another --port")


def test_the_answer_of_another_installation_is_not_taken_for_this_ones(
    home: Path, db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_up(home, monkeypatch)
    assert checked(home, "port").says.startswith("agentfleet is starting up")
    url = f"http://127.0.0.1:{ports.free_port()}"
    private_files.write_json(home / "client.json", {"url": url, "token": "af_secret"})
    told = checked(home, "port")
    assert (told.ok, told.says.startswith(f"{url} does not answer")) == (False, True)
    assert "af_secret" not in told.says


def test_a_role_that_is_missing_is_named_with_its_log(home: Path, db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_up(home, monkeypatch)
    assert checked(home, "processes") == Check("processes", True, "web, worker, beat, gateway are alive")
    private_files.write_json(home / "pids.json", {"web": os.getpid(), "worker": 2**22 + 1})
    told = checked(home, "processes")
    assert (told.ok, told.says.startswith("worker, beat, gateway not alive: see ")) == (False, True)
    assert f"{home}/logs/beat.log" in told.says


def test_a_worker_is_heard_of_or_silent(home: Path, db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend_up(home, monkeypatch)
    assert checked(home, "worker").says.startswith("no worker was ever heard of: see ")
    host = Host.objects.create(pk="h", name="here", last_seen_at=clock.now() - timedelta(seconds=60))
    told = checked(home, "worker")
    assert (told.ok, told.says.startswith("the last word of a worker is 6")) == (False, True)
    host.last_seen_at = clock.now()
    host.save()
    assert checked(home, "worker") == Check("worker", True, "heard of 0 s ago")


def test_the_next_tick_is_told_and_one_that_is_overdue_is_wrong(
    home: Path, db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend_up(home, monkeypatch)
    assert checked(home, "schedules") == Check("schedules", True, "no agent has one with a time to come")
    make_agent("yearly", schedule="0 0 1 1 *")
    make_agent("hourly", schedule="0 * * * *")
    told = checked(home, "schedules")
    assert (told.ok, told.says.startswith("2 agents have one; next is hourly at ")) == (True, True)
    Schedule.objects.filter(agent__name="hourly").update(fired_at=clock.now() - timedelta(hours=2))
    told = checked(home, "schedules")
    assert (told.ok, told.says.startswith("due and not started: hourly: see ")) == (False, True)


def test_a_model_key_is_asked_for_by_name_and_never_shown(
    home: Path, db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "agentfleet.sqlite3").touch()
    make_agent("writer", models=[CLAUDE])
    make_agent("careful", models=[CLAUDE, SCRIPTED])
    told = checked(home, "model keys")
    assert not told.ok
    mend = "add one with `agentfleet creds add anthropic_key`, or put it into its variable before `up`"
    assert told.says == f"no key for anthropic, and writer cannot run without: {mend}"
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-secret")
    assert checked(home, "model keys") == Check("model keys", True, "anthropic: there, scripted: there")


def test_a_key_that_another_model_stands_in_for_is_not_missed(home: Path, db: None) -> None:
    (home / "agentfleet.sqlite3").touch()
    make_agent("careful", models=[CLAUDE, SCRIPTED])
    told = checked(home, "model keys")
    assert told == Check("model keys", True, "anthropic: none, others stand in, scripted: there")


def test_a_check_that_breaks_is_a_line_like_any_other(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(place: Place) -> str:
        raise RuntimeError("out of order")

    monkeypatch.setattr(files, "look_at_home", broken)
    assert checked(home, "home") == Check("home", False, "could not be looked at: RuntimeError: out of order")
