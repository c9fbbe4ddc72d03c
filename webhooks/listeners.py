"""Which sources there are and what their triggers want, kept ready in each process.

Reading them for every request costs more than storing it. So each process remembers them, and every request is held
against the database once, at its end: by a condition of the statement that stores it, or first thing in the
transaction that starts its runs. Whoever remembers what is no longer so gets Stale, and begins anew.
"""

from __future__ import annotations

import contextlib
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, groupby
from operator import itemgetter
from typing import TypeVar

from django.db import connection

from webhooks.matching import Index
from webhooks.models import Source, Trigger
from webhooks.providers.base import Event

# A source gets another revision when it changes and when it gets triggers. Those that lose some are found out later:
# whatever a trigger starts, the trigger is read once more.
REVISION = "SELECT COALESCE(SUM(revision), 0) FROM webhooks_source"
TRIES = 10  # sources change by people's hands
Answer = TypeVar("Answer")


class Stale(Exception):
    """The sources or triggers have changed since they were read: begin anew."""


def currently(decide: Callable[[], Answer]) -> Answer:
    """What `decide` says, asked again where it was Stale."""
    for _ in range(TRIES - 1):
        with contextlib.suppress(Stale):
            return decide()
    return decide()


@dataclass(frozen=True, order=True)
class Listener:
    """A trigger, and its place: agents by name, and the triggers of each in their order."""

    agent: str
    index: int
    trigger: int


@dataclass(frozen=True)
class Table:
    """What is known, and how to see whether it is still so."""

    revision: int
    sources: Mapping[str, Sequence[Source]]  # of each provider, by name
    listeners: Mapping[int, Index[Listener]]  # of each source

    def of(self, provider: str, name: str | None = None) -> list[Source]:
        """The active sources of a provider, or the one of that name."""
        return [source for source in self.sources.get(provider, ()) if name in (None, source.name)]

    def matching(self, sources: Sequence[Source], event: Event) -> list[Listener]:
        """The triggers whose filters pass, in the order of their agents' names."""
        heard = (self.listeners[source.pk].matching(event) for source in sources if source.pk in self.listeners)
        return sorted(chain.from_iterable(heard))

    def check(self) -> None:
        """Raises Stale."""
        if revision() != self.revision:
            forget(self)
            raise Stale


_lock = threading.Lock()
_known: list[Table] = []  # one, or none


def table() -> Table:
    """As last read; it may be out of date."""
    if known := _known[:1]:
        return known[0]
    with _lock:  # reading thousands takes a while: once is enough
        if not _known:
            _known.append(read())
        return _known[0]


def refresh() -> None:
    """Whoever asks for the table next gets it as it is now."""
    with contextlib.suppress(Stale):
        table().check()


def forget(stale: Table) -> None:
    with _lock:
        if _known[:1] == [stale]:
            _known.clear()


def revision() -> int:
    with connection.cursor() as cursor:
        cursor.execute(REVISION)
        (found,) = cursor.fetchone()
    return int(found)


def read() -> Table:
    """The revision first: what changes meanwhile makes the table out of date at worst."""
    now = revision()
    sources: dict[str, list[Source]] = defaultdict(list)
    for source in Source.objects.filter(workspace__name="default", active=True).order_by("name"):
        sources[source.provider].append(source)
    return Table(now, dict(sources), read_listeners())


def read_listeners() -> dict[int, Index[Listener]]:
    rows = Trigger.objects.filter(source__active=True).order_by("source", "agent__name", "index")
    columns = rows.values_list("source", "source__provider", "agent__name", "index", "pk", "filters")
    indexes = {}
    for (source_id, provider), triggers in groupby(columns, key=itemgetter(0, 1)):
        listening = ((Listener(agent, index, pk), filters) for _, _, agent, index, pk, filters in triggers)
        indexes[source_id] = Index(provider, listening)
    return indexes
