"""Where a run stands in the chain of causes: how many runs are before it, and which began it. Both are bounded.

Agents that set off each other, themselves or their like over what they do outside are stopped here, however they do
it: every run is born with its lineage, and one that would be too far down, or one too many, is not born.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from django.conf import settings
from django.db import connection

from agents import clock
from runs.models import Run

COUNTED = timedelta(hours=24)  # for so long a run counts among those that its root has set off
NEAR = 64  # runs from the limit from which on they are let in one by one
ROOTS = 0x726F6F74  # the class of our locks among PostgreSQL's advisory ones


class Runaway(Exception):
    """The run may not be born; the message says why, and `code` is what the API and dead letters call it."""

    code: ClassVar[str]


class TooFar(Runaway):
    code = "HOPS_EXCEEDED"


class TooMany(Runaway):
    code = "FORK_STORM"


@dataclass(frozen=True)
class Lineage:
    root: str = ""  # the run that began it all; empty: this one does
    hops: int = 0  # runs before it


_hops_of: dict[str, Callable[[str], int]] = {}


def register(prefix: str, hops_of: Callable[[str], int]) -> None:
    """`hops_of(id)`: how many runs are before what has an id that starts with `prefix`, such as a delivery."""
    _hops_of[prefix] = hops_of


def of(caused_by: str, *, hops: int | None = None, goes_on: bool = False) -> Lineage:
    """That of a run to be born. `hops`: those before it, where the caller knows them better.

    One that goes on with the work of `caused_by`, as a rerun does, is no further down: what bounds those is counted
    elsewhere. Raises TooFar, TooMany.
    """
    lineage = behind(caused_by, goes_on=goes_on) if hops is None else Lineage(hops=hops)
    if lineage.hops > settings.MAX_HOPS:
        raise TooFar(f"a chain of {lineage.hops} runs has led to this, {settings.MAX_HOPS} are the most")
    if lineage.root:
        check_number(lineage.root)
    return lineage


def behind(caused_by: str, *, goes_on: bool) -> Lineage:
    prefix = caused_by.partition("_")[0]
    if hops_of := _hops_of.get(prefix):
        return Lineage(hops=hops_of(caused_by))
    known = Run.objects.filter(pk=caused_by).values_list("root", "hops").first() if prefix == "run" else None
    if known is None:
        return Lineage()
    root, hops = known
    return Lineage(root or caused_by, hops if goes_on else hops + 1)


def check_number(root: str) -> None:
    """Raises TooMany. Exact near the limit, where newcomers come one by one to the end of their transactions."""
    if set_off_by(root) < settings.MAX_RUNS_PER_ROOT - NEAR:
        return
    one_by_one(root)
    if set_off_by(root) >= settings.MAX_RUNS_PER_ROOT:
        hours = COUNTED // timedelta(hours=1)
        raise TooMany(f"{root} has set off {settings.MAX_RUNS_PER_ROOT} runs in {hours} hours, which are the most")


def set_off_by(root: str) -> int:
    return Run.objects.filter(root=root, created_at__gt=clock.now() - COUNTED).count()


def one_by_one(root: str) -> None:
    """SQLite lets one in anyway."""
    if connection.vendor == "postgresql":
        number = int.from_bytes(hashlib.sha256(root.encode()).digest()[:4], signed=True)
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_advisory_xact_lock(%s, %s)", [ROOTS, number])
