"""What a run was started with, beside what its agent is now: field by field and file by file. Reads, never writes."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from django.db.models import Exists, OuterRef, QuerySet
from django.db.models.functions import Length

from agents.models import AgentFile, AgentVersion
from runs.models import Run

LARGEST = 100_000  # bytes of a file whose lines are compared
MOST_LINES = 2000  # of a text whose lines are compared
AROUND = 3  # lines of a text that are shown around a change


@dataclass(frozen=True)
class Difference:
    """One field or file. Short values stand in `before` and `after`, None where there is none; of texts, `lines`."""

    place: str
    before: str | None
    after: str | None
    lines: tuple[str, ...] = ()


def is_current(run: Run) -> bool:
    return run.version_id == run.agent.version_id


def record(run: Run) -> dict[str, Any] | None:
    """As the API tells it; None for a run that has not started."""
    return {"digest": run.version.digest, "current": is_current(run)} if run.version else None


def fields(before: AgentVersion, after: AgentVersion) -> list[Difference]:
    """In the order of their names. A field that only one of them knows is there in one."""
    old, new = dict(flat(before.spec)), dict(flat(after.spec))
    places = [place for place in sorted(old | new) if old.get(place, "") != new.get(place, "")]
    return [difference(place, old.get(place), new.get(place)) for place in places]


def flat(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Each value with its place, such as limits.turns; lists are compared whole."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from flat(inner, f"{place}.{name}" if place else str(name))
    else:
        yield place, value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)


def difference(place: str, before: str | None, after: str | None) -> Difference:
    """By lines where there are several."""
    if "\n" in f"{before}{after}":
        return Difference(place, before, after, compared(before or "", after or ""))
    return Difference(place, before, after)


def files(before: AgentVersion, after: AgentVersion) -> list[Difference]:
    """Those that are new, gone or changed, by path."""
    old, new = unlike(before, after), unlike(after, before)
    return [difference_of_files(path, old.get(path), new.get(path)) for path in sorted(old | new)]


def unlike(version: AgentVersion, other: AgentVersion) -> dict[str, AgentFile]:
    """The files of `version` that `other` does not have so; the contents of large ones stay where they are."""
    same = AgentFile.objects.filter(version=other, path=OuterRef("path"), content=OuterRef("content"))
    rows: QuerySet[AgentFile] = AgentFile.objects.filter(~Exists(same), version=version)
    return {row.path: row for row in rows.annotate(size=Length("content")).defer("content")}


def difference_of_files(path: str, before: AgentFile | None, after: AgentFile | None) -> Difference:
    texts = [text_of(row) for row in (before, after)]
    if None in texts:
        return Difference(path, described(before), described(after))
    return Difference(path, described(before), described(after), compared(texts[0] or "", texts[1] or ""))


def text_of(row: AgentFile | None) -> str | None:
    """None for what has no lines to show: too large, or no text."""
    if row is None:
        return ""
    if row.size > LARGEST:  # type: ignore[attr-defined]
        return None
    content = bytes(row.content)
    try:
        return None if b"\0" in content else content.decode()
    except UnicodeDecodeError:
        return None


def described(row: AgentFile | None) -> str | None:
    return None if row is None else f"{row.size} bytes"  # type: ignore[attr-defined]


def compared(before: str, after: str) -> tuple[str, ...]:
    old, new = before.splitlines(), after.splitlines()
    if len(old) + len(new) > MOST_LINES:
        return (f"[{len(old)} lines before, {len(new)} now: too many to compare here]",)
    lines = list(difflib.unified_diff(old, new, n=AROUND, lineterm=""))[2:]  # without the names of files
    return tuple(lines) or ("[only the ends of lines differ]",)


def context_for(run: Run) -> Mapping[str, Any]:
    """All that the page shows."""
    before, after = run.version, run.agent.version
    if before is None or after is None or before.pk == after.pk:
        return {"run": run, "fields": [], "files": [], "same": before is not None}
    return {"run": run, "fields": fields(before, after), "files": files(before, after), "same": False}
