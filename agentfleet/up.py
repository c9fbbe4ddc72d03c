"""`agentfleet up`: one box, all of it. Starts the processes, restarts one that dies, stops them in order.

Loads nothing of Django: it must stay small, and stand when the rest does not.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from agentfleet import home, own_redis
from agentfleet.background import LINK, started_at
from agentfleet.children import CannotStart, Child, end_all
from agentfleet.ports import port_is_free
from agents import private_files
from runs.sandbox import certificates
from runs.sandbox.base import Refused

ROLES = ("web", "worker", "beat", "gateway")
LATER = "beat"  # it and those behind it start when the server answers: a look at a schedule can wait, people cannot
SERVES_WITHIN = 60.0  # seconds for the first answer
FREE_WITHIN = 3.0  # seconds for a port whose last owner is on its way out
LOG_LIMIT = 20 * 1024 * 1024  # bytes; a longer log is set aside at the next start
NO_RESTART = "--no-restart"
# The C library gives threads heaps of their own, and keeps of each what it once took. Two give back 75 MB of a box,
# and cost nothing: few threads of a Python process allocate at one time.
ARENAS = "2"


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
        """Start everything and stay until told to stop. Raises CannotStart, Refused."""
        home.ensure(self.folder)
        if file := os.environ.get(certificates.VARIABLE):
            certificates.check(file)
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
            "MALLOC_ARENA_MAX": ARENAS,
            **os.environ,
            "AGENTFLEET_HOME": str(self.folder),
            "AGENTFLEET_HOST": self.host,
            "AGENTFLEET_PORT": str(self.port),
            "AGENTFLEET_URL": os.environ.get("AGENTFLEET_URL") or self.url,
            "PYTHONUNBUFFERED": "1",
        }

    def _start_redis(self, env: dict[str, str]) -> None:
        if not env.get("REDIS_URL"):
            argv, env["REDIS_URL"] = own_redis.command(self.folder)
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
        end_all([self.children[name] for name in order])
        end_all([child for name, child in self.children.items() if name not in order])

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


def become(folder: Path, host: str, port: int, *, restart: bool) -> NoReturn:
    """Be the supervisor from here on, without what the command line has loaded: it stays for months."""
    flags = [] if restart else [NO_RESTART]
    words = [sys.executable, "-m", "agentfleet.up", str(folder.absolute()), host, str(port), *flags]
    os.execv(sys.executable, words)  # noqa: S606 - no shell is wanted


def main() -> None:
    folder, host, port, *flags = sys.argv[1:]
    box = Box(Path(folder), host, int(port), restart=NO_RESTART not in flags)
    try:
        box.run(lambda line: print(line, flush=True))
    except (CannotStart, home.HomeError, Refused) as error:
        sys.exit(f"agentfleet: {error}")


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


def _prepared(env: dict[str, str]) -> str:
    """Migrate and make what is missing, in a process of its own; the path of a login link."""
    argv = [sys.executable, "-m", "agentfleet.prepare"]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CannotStart(f"the database could not be prepared:\n{done.stderr.strip()}")
    return done.stdout.strip().splitlines()[-1]


def _tail(log: Path) -> str:
    lines = log.read_text(errors="replace").strip().splitlines()[-8:] if log.exists() else []
    return "".join(f"\n  {line}" for line in lines)


# Never through a company's proxy, which does not know this machine's own address.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


if __name__ == "__main__":
    main()
