"""A settings file against the tables it may hold, and words for what does not fit."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from agents.manifest.keys import (
    AgentTable,
    ApprovalsTable,
    AttemptsTable,
    BreakerTable,
    BuildTable,
    CoalesceTable,
    FrontMatter,
    GatewayTable,
    HooksTable,
    LimitsTable,
    LocalTable,
    LocksTable,
    Misfit,
    ModelTable,
    PreflightTable,
    ScheduleTable,
    TaskTable,
    known,
    loose,
    question,
)
from agents.manifest.lines import Place
from agents.manifest.outgoing_table import OutgoingTable
from agents.manifest.poll_table import PollTable
from agents.manifest.sources import SchemeTable, SourceTable
from agents.manifest.values import Table

_INNER: Mapping[str, type[Table]] = {
    "model": ModelTable,
    "models": ModelTable,
    "local": LocalTable,
    "webhooks": SourceTable,
    "outgoing": OutgoingTable,
    "hooks": HooksTable,
    "preflight": PreflightTable,
    "schedules": ScheduleTable,
    "polls": PollTable,
    "task": TaskTable,
    "limits": LimitsTable,
    "attempts": AttemptsTable,
    "breaker": BreakerTable,
    "coalesce": CoalesceTable,
    "approvals": ApprovalsTable,
    "gateway": GatewayTable,
    "build": BuildTable,
    "locks": LocksTable,
    "scheme": SchemeTable,
}

AnyTable = TypeVar("AnyTable", bound=Table)


def read(table: type[AnyTable], data: dict[str, Any]) -> tuple[AnyTable, list[Misfit]]:
    """The table, and what in `data` does not fit it; the table holds the default wherever something did not."""
    data = {key: value for key, value in data.items() if key not in loose(table)}
    try:
        return table.model_validate(data), []
    except ValidationError as failure:
        errors = failure.errors(include_url=False)
    fitting = deepcopy(data)
    for error in errors:
        _remove(fitting, error)
    return table.model_validate(fitting), [(error["loc"], _sentence(table, error)) for error in errors]


def misplaced(table: type[Table], data: Mapping[str, Any]) -> list[Misfit]:
    """Keys of the top level inside tables that are not looked into: TOML gives a key to the last [table] above it."""
    return [
        misfit
        for key in sorted(loose(table) & data.keys() - {"agents"})  # [agents.<name>] has such keys by right
        for misfit in _misplaced(known(table), data[key], (key,))
    ]


def stray(key: str, place: Place) -> str:
    return (
        f"{key} means nothing inside {dotted(place)}: it belongs at the top level "
        "(in TOML above the first [table], since a key belongs to the table it stands under)"
    )


def dotted(place: Place) -> str:
    """("webhooks", 0, "events") as webhooks[0].events."""
    steps = (f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return "".join(steps).removeprefix(".")


def a_kind_of(value: Any) -> str:
    kinds = {bool: "true or false", str: "text", dict: "a table", list: "a list", type(None): "empty"}
    return kinds.get(type(value), "a number" if isinstance(value, int | float) else "a date or time")


def _misplaced(names: frozenset[str], value: Any, place: Place) -> list[Misfit]:
    if not isinstance(value, dict):
        return []
    found = [((*place, key), stray(key, place)) for key in value if key in names]
    for key, inner in value.items():
        found += _misplaced(names, inner, (*place, key))
    return found


def _remove(data: dict[str, Any], error: ErrorDetails) -> None:
    """Take out what does not fit: an unknown key alone, else the whole setting, or the one model or source."""
    place = error["loc"]
    if error["type"] != "extra_forbidden" or any(isinstance(step, int) for step in place):
        named = place[0] in {"models", "webhooks", "outgoing"} and isinstance(data.get(str(place[0])), dict)
        place = place[: 2 if named else 1]
    table: Any = data
    for step in place[:-1]:
        table = table.get(step, {})
    table.pop(place[-1], None)


_WANTED: Mapping[str, str] = {
    "string_type": "text",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a table",
    "model_type": "a table",
}
_PHRASES: Mapping[str, str] = {
    "missing": "is missing",
    "literal_error": "must be {expected}",
    "greater_than_equal": "must be {ge} or more",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be {le} or less",
    "string_too_short": "must not be empty",
    "string_too_long": "must have at most {max_length} characters",
    "finite_number": "must be a finite number",
}


def _sentence(root: type[Table], error: ErrorDetails) -> str:
    place, kind = error["loc"], error["type"]
    if kind == "model_type" and len(place) == 2 and place[1] in known(root):
        return stray(str(place[1]), place[:1])
    if kind == "extra_forbidden":
        return _unknown_key(root, place)
    if kind in _WANTED:
        return f"{dotted(place)} must be {_WANTED[kind]}, not {a_kind_of(error['input'])}"
    if kind in _PHRASES:
        return f"{dotted(place)} {_PHRASES[kind].format(**_plain(error.get('ctx', {})))}".replace("'", "")
    return error["msg"]


def _plain(bounds: Mapping[str, Any]) -> dict[str, Any]:
    """Bounds of a number that may have a fraction come as 0.0."""
    whole = {name for name, bound in bounds.items() if isinstance(bound, float) and bound.is_integer()}
    return {name: int(bound) if name in whole else bound for name, bound in bounds.items()}


def _unknown_key(root: type[Table], place: Place) -> str:
    key = str(place[-1])
    if len(place) > 1 and key in known(root):
        return stray(key, place[:-1])
    if root is FrontMatter and key in known(AgentTable):
        return f"{key} means nothing above the instructions: put it into config.toml beside SKILL.md"
    inner = place[2] if len(place) > 3 else place[0]  # [webhooks.<name>.scheme] is a table of its own
    table = root if len(place) == 1 else _INNER[str(inner)]
    return f"unknown key {dotted(place)}{question(key, known(table))}"
