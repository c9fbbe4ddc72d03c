"""What agents remember between runs: named texts, an agent's own or the whole workspace's.

Called inside the transaction of the tool call that asks, so what is written stays if and only if the call is done.
Another workspace's memories are never reached: every query begins with `of`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from django.db.models import Count, Func, IntegerField, Q, QuerySet, Sum

from agents import clock
from runs.models import Memory, Run

Scope = Literal["agent", "workspace"]

LARGEST_ENTRY = 64 * 1024  # bytes
MOST_ENTRIES = 1000  # of a scope
LARGEST_SCOPE = 16 * 1024 * 1024  # bytes
MOST_FOUND = 20
BEFORE, AFTER = 80, 160  # characters of an excerpt around what was looked for


class NoMemory(Exception):
    """There is no entry of that name; the message names some that there are."""


class Full(Exception):
    """The entry or its scope would be too large; the message says which limit and what to do."""


@dataclass(frozen=True)
class Found:
    memory: Memory
    excerpt: str


class Bytes(Func):
    """How long a text is in UTF-8."""

    function = "octet_length"
    output_field = IntegerField()

    def as_sqlite(self, compiler: Any, connection: Any, **context: Any) -> Any:
        return self.as_sql(compiler, connection, template="LENGTH(CAST(%(expressions)s AS BLOB))", **context)


def of(run: Run, scope: Scope) -> QuerySet[Memory]:
    """The memories that a run may reach."""
    return Memory.objects.filter(workspace=run.workspace_id, agent=run.agent_id if scope == "agent" else None)


def read(run: Run, scope: Scope, name: str) -> Memory:
    """Raises NoMemory."""
    found = of(run, scope).filter(name=name).first()
    if found is None:
        raise NoMemory(_missing(run, scope, name))
    return found


def write(run: Run, scope: Scope, name: str, content: str) -> None:
    """A new entry, or another content for it. Raises Full."""
    if len(content.encode()) > LARGEST_ENTRY:
        raise Full(f"an entry holds at most {LARGEST_ENTRY} bytes: keep the gist, or split it")
    _refuse_overflow(run, scope, name, content)
    now = clock.now()
    said = {"content": content, "run": run, "updated_at": now}
    owner = {"workspace": run.workspace, "agent": run.agent if scope == "agent" else None, "created_at": now}
    of(run, scope).update_or_create(name=name, defaults=said, create_defaults=said | owner)


def delete(run: Run, scope: Scope, name: str) -> None:
    """Raises NoMemory."""
    if not of(run, scope).filter(name=name).delete()[0]:
        raise NoMemory(_missing(run, scope, name))


def listed(run: Run, scope: Scope) -> QuerySet[Memory]:
    """Newest first, without their contents, each with its `size` in bytes."""
    return of(run, scope).order_by("-updated_at", "-pk").defer("content").annotate(size=Bytes("content"))


def search(run: Run, scope: Scope, query: str) -> list[Found]:
    """Those that have every word of `query` in name or content, in whatever case; newest first, MOST_FOUND at most."""
    words = query.casefold().split()
    rows = of(run, scope).order_by("-updated_at", "-pk")
    for word in filter(str.isascii, words):  # the others SQLite would compare to the letter
        rows = rows.filter(Q(name__icontains=word) | Q(content__icontains=word))
    hits = (memory for memory in rows.iterator(chunk_size=50) if _has_all(memory, words))
    return [Found(memory, excerpt(memory.content, words)) for memory, _ in zip(hits, range(MOST_FOUND), strict=False)]


def excerpt(content: str, words: list[str]) -> str:
    """One line around the first word that occurs, or the beginning."""
    folded = content.lower()  # as long as the content, nearly always, and an excerpt may be a letter off
    places = [place for word in words if (place := folded.find(word)) >= 0]
    start = max(0, min(places, default=0) - BEFORE)
    end = min(places, default=0) + AFTER
    shown = " ".join(content[start:end].split())
    return f"{'…' if start else ''}{shown}{'…' if end < len(content) else ''}"


def _has_all(memory: Memory, words: list[str]) -> bool:
    text = f"{memory.name}\n{memory.content}".casefold()
    return all(word in text for word in words)


def _refuse_overflow(run: Run, scope: Scope, name: str, content: str) -> None:
    others = of(run, scope).exclude(name=name).aggregate(count=Count("pk"), size=Sum(Bytes("content")))
    if others["count"] >= MOST_ENTRIES:
        raise Full(f"the {scope}'s memory holds {MOST_ENTRIES} entries and no more: delete some, or put two into one")
    if (others["size"] or 0) + len(content.encode()) > LARGEST_SCOPE:
        raise Full(f"the {scope}'s memory holds {LARGEST_SCOPE} bytes and no more: delete some")


def _missing(run: Run, scope: Scope, name: str) -> str:
    names = ", ".join(_some_names(run, scope))
    return f"the {scope}'s memory has no {name!r}: {f'there is {names}' if names else 'it is empty'}"


def _some_names(run: Run, scope: Scope) -> Iterator[str]:
    newest = of(run, scope).order_by("-updated_at", "-pk").values_list("name", flat=True)[:11]
    for number, name in enumerate(newest):
        yield name if number < 10 else "…"
