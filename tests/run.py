"""`make test`: everything on SQLite, and what the database decides once more on a PostgreSQL of its own.

    python -m tests.run [PYTEST ARGUMENTS]     the arguments go to every pass

Three passes at a time, the longest first: those with whole installations mostly wait for them, and more of them would
wait for each other.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from tests.postgres import cluster

LANES = 3
NO_TESTS = 5  # pytest's exit code: the arguments select nothing in this pass


@dataclass(frozen=True)
class Pass:
    name: str
    marked: str
    database_url: str = ""


def main(arguments: list[str]) -> int:
    began = time.monotonic()
    with cluster() as url, ThreadPoolExecutor(LANES) as lanes:
        codes = list(lanes.map(partial(code_of, arguments=arguments), passes(url)))
    print(f"tests took {time.monotonic() - began:.0f} s", flush=True)
    return verdict(codes)


def passes(postgresql_url: str) -> list[Pass]:
    """The longest first. Each test is in one of them, and what the database decides in that of PostgreSQL as well."""
    return [
        Pass("faults", "faults"),
        Pass("sqlite", "not (engine or box or browser or only_postgresql)"),
        Pass("box", "box and not (browser or faults)"),
        Pass("postgresql", "postgresql or only_postgresql", postgresql_url),
        Pass("engine", "engine and not (box or only_postgresql)"),
        Pass("browser", "browser"),
    ]


def verdict(codes: Sequence[int]) -> int:
    """The first code that speaks of a failure; that nothing was selected is one only if it is so everywhere."""
    telling = [code for code in codes if code != NO_TESTS]
    return next((code for code in telling if code), 0) if telling else NO_TESTS


def code_of(one: Pass, arguments: Sequence[str]) -> int:
    """Run one pass; its lines come out under its name as they are printed."""
    argv = [sys.executable, "-m", "pytest", "-q", "--durations=5", "-m", one.marked, *arguments]
    env = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    if one.database_url:
        env["DATABASE_URL"] = one.database_url
    with subprocess.Popen(argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as tests:
        assert tests.stdout is not None
        for line in tests.stdout:
            print(f"{one.name:10}  {line}", end="", flush=True)
    return tests.returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
