"""Polls of a folder on the worker's host. Only below the folders that the server's own setting names."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path

from django.conf import settings

from webhooks.polls.items import MOST, SHOWN, Item, LookFailed, Seen, bounded, digest, once

TEXT = 32 * 1024  # bytes of a file that a run is told with it


def look(pattern: str) -> Seen:
    """Regular files, in the order of their names. Raises LookFailed."""
    if fault := refusal(pattern):
        raise LookFailed(fault)
    try:
        found = list(islice(items(pattern), MOST + 1))
    except OSError as error:
        raise LookFailed(f"{pattern} cannot be looked at: {error.strerror}") from error
    if len(found) > MOST:
        raise LookFailed(f"{pattern} fits more than {MOST:,} files: name fewer")
    return Seen(items=once(sorted(found, key=lambda item: str(item.told["path"]))))


def refusal(pattern: str) -> str:
    """Why this host does not look there; empty: it does."""
    if is_allowed(split(pattern)[0]):
        return ""
    there_are = ", ".join(map(str, roots())) or "none"
    return f"{pattern} is not below a folder that AGENTFLEET_POLL_PATHS allows on this host; there are: {there_are}"


def roots() -> list[Path]:
    return [Path(folder).resolve() for folder in settings.POLL_PATHS]


def is_allowed(path: Path) -> bool:
    """Wherever links lead."""
    there = path.resolve()
    return any(there.is_relative_to(root) for root in roots())


def split(pattern: str) -> tuple[Path, str]:
    """The part before the first wildcard, and the rest."""
    parts = Path(pattern).parts
    plain = next((number for number, part in enumerate(parts) if glob.has_magic(part)), len(parts))
    rest = [*parts[plain:], *(["*"] if parts[-1] == "**" else [])]
    return Path(*parts[:plain]), "/".join(rest)


def items(pattern: str) -> Iterator[Item]:
    """Without hidden files, which is how many programs call those that they still write."""
    base, rest = split(pattern)
    for path in base.glob(rest) if rest else [base]:
        try:
            known = path.stat()
        except (FileNotFoundError, RuntimeError):  # gone in this moment; links in a circle
            continue
        if stat.S_ISREG(known.st_mode) and not path.name.startswith(".") and is_allowed(path):
            yield item_of(str(path), known)


def item_of(name: str, known: os.stat_result) -> Item:
    written = name.encode("utf-8", "replace").decode()
    modified = datetime.fromtimestamp(known.st_mtime, UTC).isoformat()
    told = {"path": written, "size": known.st_size, "modified": modified}
    return Item(key=digest(f"{name}\0{known.st_size}\0{known.st_mtime_ns}"), shown=written[-SHOWN:], told=told)


def with_text(item: Item) -> Item:
    """What stands in it too, where that is a little text: the host's folders are not in the sandbox."""
    try:
        text = content(Path(item.told["path"])).decode()
    except (OSError, ValueError):
        return item
    told = item.told | {"text": text}
    return replace(item, told=told) if bounded(told) == told else item


def content(path: Path) -> bytes:
    """Raises OSError, and ValueError for one that is too large or that a link now leads out of what is allowed."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - what is checked is what is read
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        if not is_file or not is_allowed(Path(f"/proc/self/fd/{descriptor}")):
            raise ValueError(path)
        data = file.read(TEXT + 1)
    if len(data) > TEXT:
        raise ValueError(path)
    return data
