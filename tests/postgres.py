"""A PostgreSQL of its own for whoever asks, gone afterwards. Needs the server's programs, nothing that runs."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from agentfleet.ports import free_port

PLACES = "/usr/lib/postgresql/*/bin"
ANSWERS_WITHIN = 30.0  # seconds


class NoPostgres(Exception):
    """The programs are missing, or the server did not start; the message has its own words."""


@contextmanager
def cluster(*, durable: bool = False) -> Iterator[str]:
    """A new, empty server on loopback; its DATABASE_URL. Without `durable` it never waits for a disk."""
    programs = _programs()
    folder = Path(tempfile.mkdtemp(prefix="agentfleet-postgresql-"))
    user = _server_user()
    if user is not None:
        shutil.chown(folder, user)
    data, port = folder / "data", free_port()
    try:
        _run([programs / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync"], user)
        settings = {
            "port": port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "max_connections": 200,
        }
        if not durable:
            settings.update(fsync="off", synchronous_commit="off", full_page_writes="off")
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (folder / "log").open("wb") as log:
            server = subprocess.Popen(
                [programs / "postgres", "-D", data, *options], user=user, cwd=folder, stdout=log, stderr=log
            )
        try:
            _wait_for(server, programs / "pg_isready", port, folder / "log")
            yield f"postgres://postgres@127.0.0.1:{port}/postgres"
        finally:
            server.send_signal(signal.SIGINT)  # its fast shutdown: clients are cut off
            server.wait(20)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _programs() -> Path:
    found = sorted(Path("/").glob(PLACES.lstrip("/")), key=lambda place: int(place.parent.name))
    if not found:
        raise NoPostgres(f"there is no PostgreSQL in {PLACES}: `.ci/machine services` installs it")
    return found[-1]


def _server_user() -> str | None:
    """The server refuses to be root."""
    if os.getuid() != 0:
        return None
    return "postgres" if "postgres" in {entry.pw_name for entry in pwd.getpwall()} else "nobody"


def _run(argv: list[str | Path], user: str | None) -> None:
    done = subprocess.run(argv, user=user, cwd="/", capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise NoPostgres(f"{argv[0]}: {done.stderr.strip()}")


def _wait_for(server: subprocess.Popen[bytes], probe: Path, port: int, log: Path) -> None:
    argv: list[str | Path] = [probe, "-q", "-h", "127.0.0.1", "-p", str(port)]
    end = time.monotonic() + ANSWERS_WITHIN
    while subprocess.run(argv, check=False).returncode != 0:
        if server.poll() is not None or time.monotonic() > end:
            raise NoPostgres(f"the server did not start:\n{log.read_text()}")
        time.sleep(0.05)
