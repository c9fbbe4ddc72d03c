"""The filters of a webhook entry: which there are, and one shape for the ways to write them.

`[webhooks.match]` of an entry is kept key by key, as `match.<dotted path>`. Source: spec/action-llama.md 2.4 and 2.6.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from agents.manifest import keys, misfits
from agents.manifest.lines import Place
from agents.path_filter import PathFilter
from agents.patterns import BadPattern

NOT, MATCH = "not_", "match"
EVERYWHERE = frozenset({"senders"})
_CODE = frozenset({"events", "actions", "repos", "labels", "assignee", "author", "branches", "conclusions"})

FILTERS: Mapping[str, frozenset[str]] = {
    "github": _CODE | {"orgs", "org", "paths"},
    "sentry": frozenset({"resources", "actions"}),
    "linear": frozenset({"events", "actions", "organizations", "labels", "assignee", "author"}),
    "mintlify": frozenset({"events", "actions", "repos", "projects", "branches", "conclusions"}),
    "discord": frozenset({"events", "guilds", "channels", "commands"}),
    "slack": frozenset({"events", "channels", "team_ids"}),
    "twitter": frozenset({"events", "repos", "users"}),
    "gitlab": _CODE | {"orgs", "org", "paths"},
    "standardwebhooks": _CODE | {MATCH},
    "hmac": _CODE | {MATCH},
    "generic": _CODE | {MATCH},
    "test": frozenset({"events", "actions", "repos"}),
}
# What says nothing of an event that has none of it.
_LENIENT = frozenset({"branches", "commands"})

Values = str | list[str]


def names(provider: str) -> frozenset[str]:
    """Every key that an entry of this provider may have beside `source`."""
    own = FILTERS[provider] | EVERYWHERE
    return own | {f"{NOT}{name}" for name in own}


def split(key: str) -> tuple[str, str]:
    """`match.data.kind` is ("match", "data.kind"), and what has no path has an empty one."""
    name, dot, path = key.partition(".")
    return (name, path) if dot and path else (key, "")


def effective(entry: Mapping[str, Any], provider: str) -> dict[str, Values]:
    """Those that narrow an entry: an empty one is as good as none."""
    said = {key: value for key, value in flat(entry).items() if _is_known(key, provider)}
    return {key: _text(value, key) for key, value in said.items() if value not in ("", [])}


def dropped(entry: Mapping[str, Any], provider: str) -> list[str]:
    """Keys of an entry that its provider does not know."""
    known = names(provider)
    return [key for key in flat(entry) if key not in {"source", *known} and not _is_known(key, provider)]


def flat(entry: Mapping[str, Any]) -> dict[str, Any]:
    """With `match.<dotted path>` in place of tables in tables."""
    said: dict[str, Any] = {}
    for key, value in entry.items():
        said |= dict(_leaves(value, key)) if key in _TABLES else {key: value}
    return said


def nested(filters: Mapping[str, Values]) -> dict[str, Any]:
    """What `effective` makes of it is `filters`."""
    said: dict[str, Any] = {}
    for key, value in filters.items():
        name, path = split(key)
        if path:
            said.setdefault(name, {})[path] = value
        else:
            said[key] = value
    return said


def faults(entry: Mapping[str, Any], provider: str) -> Iterator[keys.Misfit]:
    known, unknown = names(provider), dropped(entry, provider)
    for key, value in flat(entry).items():
        if _is_known(key, provider):
            yield from _value_faults(key, value)
        elif key in known:
            yield (key,), f'{key} must be a table: write {key}.data.kind = "invoice"'
        elif split(key)[0] in _TABLES:
            yield _place(key), f"{key} asks what a body holds: {provider} has filters of its own"
        elif key in unknown and key in keys.known(keys.AgentTable):
            yield (key,), misfits.stray(key, ("webhooks",))
        elif key in unknown and (meant := _meant(key, provider)):
            yield (key,), f"unknown filter {key}: did you mean {meant}?"
    if unknown and not effective(entry, provider):
        has = f"{provider} has no filter {', '.join(unknown)}"
        own = ", ".join(sorted(FILTERS[provider] | EVERYWHERE))
        yield (), f"{has}, and without it the entry would match everything: use {own}"


def warnings(entry: Mapping[str, Any], provider: str) -> Iterator[keys.Misfit]:
    for key in dropped(entry, provider):
        yield (key,), f"{provider} webhooks have no filter {key}: it is left out, so the entry matches more"
    said = effective(entry, provider)
    source = entry["source"]
    if not said:
        yield (), f"the entry has no filter: everything that comes from {source} starts the agent"
    elif all(key.startswith(NOT) for key in said):
        yield (
            (),
            f"the entry says only what it does not want: all else that comes from {source} starts the agent",
        )
    elif all(key.startswith(NOT) or key in _LENIENT for key in said):
        lenient = ", ".join(key for key in said if key in _LENIENT)
        yield (), f"{lenient} asks nothing of events that have none: without events those start the agent too"
    if "paths" in said and "events" in said and "push" not in said["events"]:
        yield ("paths",), "only pushes say which paths they change: no event of this entry will start the agent"


_TABLES = frozenset({MATCH, f"{NOT}{MATCH}"})


def _leaves(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, inner in value.items():
            yield from _leaves(inner, f"{place}.{key}")
    else:
        yield place, value


def _is_known(key: str, provider: str) -> bool:
    name, path = split(key)
    return name in names(provider) and bool(path) is (name in _TABLES)


def _text(value: Any, key: str) -> Any:
    """What a body is asked for may be a number or a truth, and is kept as it stands in JSON."""
    if split(key)[0] not in _TABLES:
        return value
    if isinstance(value, list):
        return [_text(item, key) for item in value]
    return value if isinstance(value, str) else json.dumps(value)


def _value_faults(key: str, value: Any) -> Iterator[keys.Misfit]:
    (name, path), place = split(key), _place(key)
    values = value if isinstance(value, list) else [value]
    if path and not all(isinstance(item, str | int | float) for item in values):
        yield place, f"{key} must be text, a number, true or false, or a list of these"
    elif not path and not all(isinstance(item, str) for item in values):
        yield place, f"{key} must be text or a list of texts"
    elif name.removeprefix(NOT) == "paths" and value not in ("", []):
        yield from ((place, f"{name}: {fault}") for fault in _pattern_faults(values))


def _place(key: str) -> Place:
    """Where its table in tables stands."""
    name, path = split(key)
    return (name, *path.split(".")) if path else (key,)


def _pattern_faults(patterns: list[str]) -> Iterator[str]:
    try:
        PathFilter(patterns)
    except BadPattern as error:
        yield str(error)


def _meant(key: str, provider: str) -> str | None:
    own = FILTERS[provider] | EVERYWHERE
    if key.startswith(NOT):
        found = keys.suggestion(key.removeprefix(NOT), own)
        return found and f"{NOT}{found}"
    return keys.suggestion(key, own)
