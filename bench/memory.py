"""Memory of process trees as the kernel shares it out: a page that several map counts in parts (PSS)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

PROC = Path("/proc")


def by_name(pids: Mapping[str, int]) -> dict[str, int]:
    """Bytes of each named process and its descendants; one with a name of its own counts under that, with its own."""
    named = frozenset(pids.values())
    return {name: sum(map(proportional_bytes, family(pid, named))) for name, pid in pids.items()}


def family(pid: int, others: AbstractSet[int] = frozenset()) -> set[int]:
    """The process and all its descendants, but none of `others` and theirs."""
    found = {pid}
    for child in _children(pid) - others:
        found |= family(child, others)
    return found


def _children(pid: int) -> set[int]:
    found: set[int] = set()
    with contextlib.suppress(OSError):  # it ended meanwhile
        for thread in (PROC / str(pid) / "task").iterdir():
            found.update(map(int, (thread / "children").read_text().split()))
    return found


def threads(pid: int) -> int:
    """How many the process has. Raises FileNotFoundError if it is gone."""
    return sum(1 for _ in (PROC / str(pid) / "task").iterdir())


def proportional_bytes(pid: int) -> int:
    """The process's PSS; 0 if it ended meanwhile."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in (PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
