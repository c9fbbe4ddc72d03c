"""`make test`: everything on SQLite, and what the database decides once more on a PostgreSQL of its own.

    python -m tests.run [PYTEST ARGUMENTS]     the arguments go to every pass

Three passes at a time: those with whole installations mostly wait for them.
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

NO_TESTS = 5  # pytest's exit code: the arguments select nothing in this pass


@dataclass(frozen=True)
class Pass:
    name: str
    marked: str
    database_url: str = ""


def main(arguments: list[str]) -> int:
    began = time.monotonic()
    with cluster() as url, ThreadPoolExecutor(3) as lanes:
        passes = [
            [Pass("box", "box and not browser")],
            [Pass("browser", "browser"), Pass("postgresql", "postgresql or only_postgresql", url)],
            [Pass("sqlite", "not (box or browser) and not only_postgresql")],
        ]
        codes = [code for lane in lanes.map(partial(codes_of, arguments=arguments), passes) for code in lane]
    print(f"tests took {time.monotonic() - began:.0f} s", flush=True)
    return verdict(codes)


def verdict(codes: Sequence[int]) -> int:
    """The first code that speaks of a failure; that nothing was selected is one only if it is so everywhere."""
    telling = [code for code in codes if code != NO_TESTS]
    return next((code for code in telling if code), 0) if telling else NO_TESTS


def codes_of(passes: Sequence[Pass], arguments: Sequence[str]) -> list[int]:
    return [code_of(one, arguments) for one in passes]


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
