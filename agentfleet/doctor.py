"""`agentfleet doctor`: what a run needs, looked at piece by piece, with the next step where something is wrong.

Reads and never mends; makes nothing where there is no home yet. No check raises, and none needs another to have
passed. Django is set up only by those that ask the database.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
import ssl
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import httpx

from agentfleet import up
from agents import private_files

if TYPE_CHECKING:
    from agents.models import Agent
    from runs.sandbox.base import Engine

DISK_WANTED = 1024**3  # bytes free where the database and the logs are
PATIENCE = 5.0  # seconds for an answer of our own processes
STARTING = timedelta(seconds=15)  # what a worker has to be heard of, and its sweep to fire what is due
SHOWN = 5  # of a list of faults


@dataclass(frozen=True)
class Check:
    """What was looked at, whether it is as it should be, and a sentence."""

    name: str
    ok: bool
    says: str

    @property
    def word(self) -> str:
        return ("note" if self.name == "warning" else "ok") if self.ok else "WRONG"


class Wrong(Exception):
    """What is wrong, and the next step."""


@dataclass(frozen=True)
class Place:
    """The installation to look at. `port` is the one `up` would take."""

    home: Path
    port: int

    @property
    def is_up(self) -> bool:
        return up.supervisor(self.home) is not None

    @property
    def pids(self) -> dict[str, int]:
        return private_files.read_json(self.home / "pids.json")

    def log(self, role: str) -> str:
        return f"{self.home}/logs/{role}.log"

    def worker_is_new(self) -> bool:
        started = up.started_at(self.pids.get("worker", 0))
        if started is None:
            return False
        since_boot = float(Path("/proc/uptime").read_text().split()[0])
        return since_boot - started / os.sysconf("SC_CLK_TCK") < STARTING.total_seconds()


def adopt_environment(home: Path) -> None:
    """See as the processes that are up see: theirs may name another database, Redis, engine or key than ours."""
    if up.supervisor(home) is None:
        return
    pids = private_files.read_json(home / "pids.json")
    for role in up.ROLES:
        if role in pids and up.started_at(pids[role]) is not None:
            items = os.fsdecode(Path(f"/proc/{pids[role]}/environ").read_bytes()).split("\0")
            os.environ.clear()
            os.environ.update({name: value for name, _, value in (item.partition("=") for item in items) if name})
            return


def examine(home: Path, port: int) -> list[Check]:
    """All that apply here, in the order a run meets them."""
    place = Place(home, port)
    return [one(name, look, place) for name, look in checks_for(place)]


def checks_for(place: Place) -> Iterator[tuple[str, Callable[[Place], str]]]:
    """Each gives the sentence of what is well, or raises Wrong."""
    yield "home", look_at_home
    yield "credentials", look_at_credentials
    yield "engine", look_at_engine
    yield "image", look_at_image
    if os.environ.get("AGENTFLEET_EXTRA_CA_FILE"):
        yield "extra CA", look_at_extra_ca
    yield "redis", look_at_redis
    yield "database", look_at_database
    yield "port", look_at_port
    yield "processes", look_at_processes
    if place.is_up:
        yield "gateway", look_at_gateway
        yield "worker", look_at_worker
        yield "schedules", look_at_schedules
    yield "model keys", look_at_model_keys


def one(name: str, look: Callable[[Place], str], place: Place) -> Check:
    """The check's sentence; a fault of ours is a sentence as well."""
    try:
        return Check(name, True, look(place))
    except Wrong as wrong:
        return Check(name, False, str(wrong))
    except Exception as error:  # noqa: BLE001 - a doctor who falls ill tells nobody what is wrong
        return Check(name, False, f"could not be looked at: {type(error).__name__}: {error}")


# --- files ------------------------------------------------------------------------------------------------------


def look_at_home(place: Place) -> str:
    home = place.home
    if not home.exists():
        return f"there is none at {home}: `agentfleet up` makes it"
    if not home.is_dir():
        raise Wrong(f"{home} is not a folder: choose another with --home or AGENTFLEET_HOME")
    if home.stat().st_uid != os.getuid():
        raise Wrong(f"{home} belongs to another user: choose another with --home or AGENTFLEET_HOME")
    if mode := open_to_others(home):
        raise Wrong(f"{home} is open to others (mode {mode:o}): chmod 700 {home}")
    free = shutil.disk_usage(home).free
    if free < DISK_WANTED:
        raise Wrong(f"only {free // 1024**2} MiB are free at {home}: make room, or move it to another disk")
    return f"{home}, {free / 1024**3:.1f} GiB free"


def look_at_credentials(place: Place) -> str:
    root = place.home / "credentials"
    found = [root, *sorted(root.rglob("*"))] if root.exists() else []
    lying_open = [item for item in found if open_to_others(item)]
    if lying_open:
        mends = [f"chmod {'700' if item.is_dir() else '600'} {item}" for item in lying_open[:SHOWN]]
        raise Wrong(f"{len(lying_open)} lie open to others, and such are refused: {'; '.join(mends)}")
    return f"{sum(item.is_file() for item in found)} files, none open to others"


def open_to_others(item: Path) -> int:
    """The mode, if others than the owner may do anything; else 0."""
    mode = stat.S_IMODE(item.stat().st_mode)
    return mode if mode & 0o077 else 0


def look_at_extra_ca(place: Place) -> str:
    file = os.environ["AGENTFLEET_EXTRA_CA_FILE"]
    try:
        count = len(ssl.create_default_context(cafile=file).get_ca_certs())
    except OSError as error:  # also what ssl raises
        raise Wrong(f"{file} has no certificates ({error}): AGENTFLEET_EXTRA_CA_FILE names a file in PEM") from error
    return f"{file}, {count} certificates"


# --- what is around ---------------------------------------------------------------------------------------------


def look_at_engine(place: Place) -> str:
    from runs.sandbox.base import SandboxError  # noqa: PLC0415 - here and below: each check loads what it needs

    try:
        with the_engine() as engine:
            return engine.ping()
    except SandboxError as error:
        raise Wrong(f"{error}: start the engine, or set DOCKER_HOST") from error


def look_at_image(place: Place) -> str:
    from runs.sandbox.base import SandboxError  # noqa: PLC0415

    try:
        with the_engine() as engine:
            image = default_image()
            engine.prepare_image(image)
    except SandboxError as error:
        raise Wrong(str(error)) from error
    return f"{image}{how_it_was_made(image)}"


@contextmanager
def the_engine() -> Iterator[Engine]:
    """The one that workers of this home use. Reads the settings; needs no database."""
    use_settings()
    from django.conf import settings  # noqa: PLC0415
    from django.utils.module_loading import import_string  # noqa: PLC0415

    engine = import_string(settings.SANDBOX_ENGINE)("doctor")
    try:
        yield engine
    finally:
        if hasattr(engine, "close"):
            engine.close()


def default_image() -> str:
    use_settings()
    from django.conf import settings  # noqa: PLC0415

    return str(settings.SANDBOX_IMAGE)


def how_it_was_made(image: str) -> str:
    """When, and from which recipe: for people. Only the engine's own command tells, so it may stay untold."""
    form = '{{.Created}} {{index .Config.Labels "agentfleet.recipe"}}'
    argv = ["docker", "image", "inspect", "-f", form, image]
    try:
        asked = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=PATIENCE)
    except (OSError, subprocess.SubprocessError):
        return ""
    created, _, recipe = asked.stdout.strip().partition(" ")
    return f", made {created[:16].replace('T', ' ')} UTC, recipe {recipe or 'unknown'}"


def look_at_redis(place: Place) -> str:
    url = os.environ.get("REDIS_URL")
    if not url:
        try:
            return f"{up.redis_server()}, which `agentfleet up` starts"
        except up.CannotStart as error:
            raise Wrong(str(error)) from error
    import redis  # noqa: PLC0415

    try:
        with closing(redis.Redis.from_url(url, socket_timeout=PATIENCE, socket_connect_timeout=PATIENCE)) as client:
            client.ping()
    except (redis.RedisError, ValueError) as error:
        mend = f"see {place.log('redis')}" if "redis" in place.pids else "start it, or mend REDIS_URL"
        raise Wrong(f"it does not answer ({error}), and every step comes some seconds late: {mend}") from error
    return "it answers"


def look_at_port(place: Place) -> str:
    if place.is_up:
        return whose_answer(place)
    try:
        free = up.port_is_free("127.0.0.1", place.port)
    except OSError as error:
        raise Wrong(f"port {place.port} cannot be had ({error.strerror}): choose another --port") from error
    if not free:
        raise Wrong(f"port {place.port} is in use by something else: stop it, or choose another --port")
    return f"{place.port} is free"


def whose_answer(place: Place) -> str:
    """Who takes the token of this home is this home's own."""
    known = private_files.read_json(place.home / "client.json")
    if not known:
        raise Wrong("agentfleet is starting up: look again in some seconds")
    url, headers = known["url"], {"Authorization": f"Bearer {known['token']}"}
    try:
        answer = httpx.get(f"{url}/api/v1/agents", headers=headers, timeout=PATIENCE, trust_env=False)
    except httpx.HTTPError as error:
        raise Wrong(f"{url} does not answer ({error}): see {place.log('web')}") from error
    if answer.status_code != httpx.codes.OK:
        raise Wrong(f"{url} does not take this home's token ({answer.status_code}): `agentfleet down`, then `up`")
    return f"{url} is served by this home's agentfleet"


def look_at_processes(place: Place) -> str:
    if not place.is_up and place.pids:
        raise Wrong("agentfleet ended without being told to: run `agentfleet up`, and the runs go on")
    if not place.is_up:
        return "agentfleet is not up: `agentfleet up` starts it"
    dead = [role for role in up.ROLES if up.started_at(place.pids.get(role, 0)) is None]
    if dead:
        logs = ", ".join(place.log(role) for role in dead)
        raise Wrong(f"{', '.join(dead)} not alive: see {logs}, then `agentfleet down` and `up`")
    return f"{', '.join(up.ROLES)} are alive"


def look_at_gateway(place: Place) -> str:
    """It listens where the worker's network is, if that has been made."""
    said = private_files.read_json(place.home / "gateway.json")
    if not said.get("addresses"):
        return "no sandbox has needed it yet"
    for address in said["addresses"]:
        url = f"http://[{address}]:{said['port']}" if ":" in address else f"http://{address}:{said['port']}"
        try:
            httpx.get(f"{url}/health", timeout=PATIENCE, trust_env=False).raise_for_status()
        except httpx.HTTPError as error:
            raise Wrong(f"{url} does not answer ({error}), so no sandbox gets locks: {place.log('gateway')}") from error
    return f"it answers at {', '.join(said['addresses'])}, port {said['port']}"


# --- what the database says -------------------------------------------------------------------------------------


def look_at_database(place: Place) -> str:
    if os.environ.get("DATABASE_URL"):
        return ask_server()
    file = place.home / "agentfleet.sqlite3"
    if not file.exists():
        return f"there is none yet: `agentfleet up` makes {file}"
    try:
        with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=PATIENCE)) as opened:
            count = opened.execute("SELECT count(*) FROM runs_run").fetchone()[0]
    except sqlite3.Error as error:
        raise Wrong(f"{file} does not open ({error}): run `agentfleet up`, or put a backup in its place") from error
    return f"{file}, {count} runs"


def ask_server() -> str:
    set_up_django()
    from django.db import DatabaseError, connection  # noqa: PLC0415

    try:
        connection.ensure_connection()
    except DatabaseError as error:
        raise Wrong(f"DATABASE_URL does not answer ({error}): start the server, or mend the address") from error
    finally:
        connection.close()
    return f"{connection.vendor} at DATABASE_URL answers"


def look_at_worker(place: Place) -> str:
    set_up_django()
    silent = silence()
    while place.worker_is_new() and (silent is None or silent > STARTING):
        time.sleep(0.2)
        silent = silence()
    if silent is None:
        raise Wrong(f"no worker was ever heard of: see {place.log('worker')}")
    if silent > STARTING:
        raise Wrong(f"the last word of a worker is {silent.total_seconds():.0f} s old: see {place.log('worker')}")
    return f"heard of {silent.total_seconds():.0f} s ago"


def silence() -> timedelta | None:
    """Since the last word of any worker; None: there never was one."""
    from agents import clock  # noqa: PLC0415
    from runs.models import Host  # noqa: PLC0415

    seen = Host.objects.order_by("-last_seen_at").values_list("last_seen_at", flat=True).first()
    return None if seen is None else max(clock.now() - seen, timedelta())


def look_at_schedules(place: Place) -> str:
    set_up_django()
    from agents import clock, schedule  # noqa: PLC0415
    from agents.models import Agent  # noqa: PLC0415

    agents = list(Agent.objects.filter(active=True, paused_at=None).exclude(schedule=""))
    late = [agent.name for agent in agents if is_late(agent)]
    if late and not place.worker_is_new():
        raise Wrong(f"due and not started: {', '.join(late[:SHOWN])}: see {place.log('worker')}")
    ticks = [
        (tick, agent.name)
        for agent in agents
        for tick in schedule.upcoming(agent.schedule, agent.timezone, after=clock.now(), count=1)
    ]
    if not ticks:
        return "no agent has one with a time to come"
    tick, name = min(ticks)
    return f"{len(agents)} agents have one; next is {name} at {tick:%Y-%m-%d %H:%M:%S} UTC"


def is_late(agent: Agent) -> bool:
    from agents import clock, schedule  # noqa: PLC0415

    since = agent.schedule_fired_at
    if since is None:  # new: it counts from the first look
        return False
    due = schedule.latest_due(agent.schedule, agent.timezone, since=since, now=clock.now() - STARTING)
    return due is not None


def look_at_model_keys(place: Place) -> str:
    """By name; of a value it is only asked whether there is one."""
    if not os.environ.get("DATABASE_URL") and not (place.home / "agentfleet.sqlite3").exists():
        return "no agent needs one yet"
    set_up_django()
    from agents.models import Agent  # noqa: PLC0415

    rows = Agent.objects.filter(active=True, scale__gt=0, kind="model", version__isnull=False)
    wanted = {row.name: [model.provider for model in row.spec.models] for row in rows.select_related("version")}
    there = {provider: has_key(provider) for provider in sorted({name for names in wanted.values() for name in names})}
    idle = [agent for agent, providers in wanted.items() if providers and not any(map(there.get, providers))]
    if idle:
        missing = sorted({provider for agent in idle for provider in wanted[agent]})
        mend = f"put one into {place.home}/credentials/{missing[0]}_key/default/token, or into its variable before `up`"
        raise Wrong(f"no key for {', '.join(missing)}, and {', '.join(idle[:SHOWN])} cannot run without: {mend}")
    said = [f"{provider}: {'there' if has else 'none, others stand in'}" for provider, has in there.items()]
    return ", ".join(said) or "no agent needs one yet"


def has_key(provider: str) -> bool:
    from agents.credentials import CredentialError  # noqa: PLC0415
    from runs.llm import keys, scripted  # noqa: PLC0415

    try:
        return provider == scripted.PROVIDER or keys.access(provider) is not None
    except CredentialError as error:
        raise Wrong(str(error)) from error


def use_settings() -> None:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "agentfleet.settings")


def set_up_django() -> None:
    use_settings()
    import django  # noqa: PLC0415

    django.setup()
