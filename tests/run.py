"""`make test`: everything on SQLite, then what the database decides once more on a PostgreSQL of its own.

python -m tests.run [PYTEST ARGUMENTS]     the arguments go to both passes
"""

from __future__ import annotations

import os
import subprocess
import sys
import time

from tests.postgres import cluster

ON_SQLITE = "not only_postgresql"
ON_POSTGRESQL = "postgresql or only_postgresql"
NO_TESTS = 5  # pytest's exit code: the arguments select nothing in this pass


def main(arguments: list[str]) -> int:
    began = time.monotonic()
    codes = [tested("SQLite", ON_SQLITE, arguments)]
    with cluster() as url:
        codes.append(tested("PostgreSQL", ON_POSTGRESQL, arguments, DATABASE_URL=url))
    print(f"tests took {time.monotonic() - began:.0f} s")
    if set(codes) == {NO_TESTS}:
        return NO_TESTS
    return max(code for code in codes if code != NO_TESTS)


def tested(database: str, marked: str, arguments: list[str], **env: str) -> int:
    """One pass of pytest; its exit code."""
    print(f"--- on {database}", flush=True)
    argv = [sys.executable, "-m", "pytest", "-q", "-m", marked, *arguments]
    inherited = {name: value for name, value in os.environ.items() if name != "DATABASE_URL"}
    return subprocess.run(argv, env={**inherited, **env}, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
