"""What a look has brought, as items: which there are, what names each, and as much of it as a run is told. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from agents import storable
from agents.redaction import NOTHING_SECRET, Redactor
from agents.spec import PollSpec

MOST = 10_000  # items of one look
TOLD = 64 * 1024  # bytes of an item, as JSON, that a run is told
SHOWN = 200  # characters of what names it


class LookFailed(Exception):
    """Nothing can be said of what is there; the message says why, and holds no secret."""


@dataclass(frozen=True, kw_only=True)
class Item:
    key: str  # SHA-256 of what names it
    shown: str  # what names it
    told: Any  # JSON


@dataclass(frozen=True, kw_only=True)
class Seen:
    """All that is there now, in the order in which it came. `unchanged`: as at the look before, and not told again."""

    items: tuple[Item, ...] = ()
    etag: str = ""
    unchanged: bool = False


def read(spec: PollSpec, data: bytes, *, redactor: Redactor = NOTHING_SECRET) -> tuple[Item, ...]:
    """The items in JSON, or in JSON lines; the first of those with one name. Raises LookFailed."""
    found = listed(spec, redactor.json(parsed(data)))
    if len(found) > MOST:
        raise LookFailed(f"{len(found):,} items came, and {MOST:,} are the most: ask for fewer")
    named = (item_of(spec, value, number) for number, value in enumerate(found, start=1))
    return once(named)


def once(items: Iterable[Item]) -> tuple[Item, ...]:
    first: dict[str, Item] = {}
    for item in items:
        first.setdefault(item.key, item)
    return tuple(first.values())


def parsed(data: bytes) -> Any:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise LookFailed("what came is not UTF-8 text") from error
    try:
        return json.loads(text)
    except RecursionError as error:
        raise LookFailed("what came is nested too deeply") from error
    except ValueError as error:
        if text.lstrip().startswith("<"):
            raise LookFailed("what came begins like XML or HTML, and not like JSON") from error
    return list(lines(text))


def lines(text: str) -> Iterator[Any]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError) as error:
                raise LookFailed(f"what came is neither JSON nor JSON lines: see line {number}") from error


def listed(spec: PollSpec, value: Any) -> list[Any]:
    found = at(value, spec.items)
    if isinstance(found, list):
        return found
    if spec.command and not spec.items and isinstance(found, dict):
        return [found]  # JSON lines, and one of them
    where = f"at {spec.items}" if spec.items else "in what came"
    remedy = "" if spec.items else ": name the place of the list with items"
    raise LookFailed(f"there is no list {where}{remedy}")


def at(value: Any, path: str) -> Any:
    """What stands at a dotted path, numbers counting in lists from 0; None where there is nothing."""
    for name in filter(None, path.split(".")):
        if isinstance(value, dict):
            value = value.get(name)
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return None
    return value


def item_of(spec: PollSpec, value: Any, number: int) -> Item:
    named = at(value, spec.id) if spec.id else None
    if named is None and spec.id not in {"", PollSpec.id}:
        raise LookFailed(f"item {number} has no {spec.id}, which is to name it")
    # A name that is a number in one answer and a text in the next is one name.
    name = written(value if named is None else named)
    return Item(key=digest(name), shown=storable.text(name[:SHOWN]), told=bounded(value))


def written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, ensure_ascii=False)


def digest(name: str) -> str:
    return hashlib.sha256(name.encode("utf-8", "surrogatepass")).hexdigest()


def bounded(value: Any) -> Any:
    value = storable.json(value)
    whole = json.dumps(value, ensure_ascii=False).encode()
    if len(whole) <= TOLD:
        return value
    return {"truncated": True, "bytes": len(whole), "begins": whole[: TOLD // 2].decode(errors="ignore")}
