"""The two databases, each with the fault that it can have while we run."""

from __future__ import annotations

import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import psycopg

from tests.postgres import cluster

Kind = Literal["sqlite", "postgresql"]
LOCKED_WITHIN = 30.0  # seconds to get SQLite's write lock in


@contextmanager
def opened(kind: Kind) -> Iterator[str]:
    """The DATABASE_URL of a server that waits for its disk: a crash may lose nothing it has confirmed.

    Empty for SQLite.
    """
    if kind == "sqlite":
        with nullcontext():
            yield ""
        return
    with cluster(durable=True) as url:
        server = Server(url)
        try:
            yield url
        finally:
            server.stop()


class Unrestarted(Exception):
    """The server is away and stays so: nothing after it can be judged."""


class Server:
    """A PostgreSQL on this machine, whoever started it."""

    def __init__(self, url: str) -> None:
        with psycopg.connect(url) as connection:
            (data,) = connection.execute("SHOW data_directory").fetchone() or ("",)
        self._data = Path(data)
        self._user = self._data.owner()

    def restart(self) -> None:
        """At once, without saying goodbye to anybody; back when it has recovered. Raises Unrestarted."""
        log = self._data.parent / "restarted.log"  # the other one may belong to whoever started the server
        self._ctl("restart", "-m", "immediate", "-w", "-l", str(log))

    def stop(self) -> None:
        if (self._data / "postmaster.pid").exists():
            self._ctl("stop", "-m", "fast", "-w")

    def _ctl(self, *words: str) -> None:
        """Raises Unrestarted."""
        pid = (self._data / "postmaster.pid").read_text().splitlines()[0]
        programs = Path(f"/proc/{pid}/exe").resolve().parent
        argv: list[str | Path] = [programs / "pg_ctl", "-D", self._data, *words]
        done = subprocess.run(argv, user=self._user, cwd="/", capture_output=True, text=True, check=False)
        if done.returncode:
            raise Unrestarted(f"pg_ctl {words[0]}: {done.stderr.strip()}")


def rows(url: str, file: Path, query: str) -> list[tuple[Any, ...]]:
    """What is stored, read past everything that serves it. `url`: of PostgreSQL; empty: SQLite's `file`."""
    if url:
        with psycopg.connect(url) as connection:
            return connection.execute(query.encode()).fetchall()
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True, timeout=LOCKED_WITHIN)) as opened:
        return opened.execute(query).fetchall()


def hold_write_lock(file: Path, seconds: float, ending: threading.Event) -> None:
    """Be a writer of this SQLite database that does not come to an end, for so long or until `ending`."""
    with closing(sqlite3.connect(file, timeout=LOCKED_WITHIN, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        ending.wait(seconds)
        connection.execute("ROLLBACK")
