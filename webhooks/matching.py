"""Does an event start an agent? The filters of a trigger, and why one failed (spec/action-llama.md 2.4).

All filters must pass, any of a filter's values is enough, values are equal to the letter, an empty list is no filter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Filters = Mapping[str, str | list[str]]
Context = Mapping[str, Any]
Wanted = Mapping[str, list[str]]  # the filters that are there, each with its values


@dataclass(frozen=True)
class Filter:
    """One filter: the values an event has for it, and whether an event that has none passes, given all filters."""

    has: Callable[[str, Context], list[str]]
    absent_passes: Callable[[Wanted], bool] = lambda _wanted: False


def matches(provider: str, filters: Filters, event: str, context: Context) -> bool:
    return not explain(provider, filters, event, context)


def explain(provider: str, filters: Filters, event: str, context: Context) -> list[str]:
    """Why the event does not match: a sentence for each filter that failed; none if it matches.

    A filter or a provider that is not known fails: what nobody understands must not start an agent.

    An event without a branch passes `branches`, as in the spec. An event without a conclusion passes `conclusions`
    only if `events` names it: where nothing else says which events are meant, "the failed ones" cannot mean every
    comment and push (spec 12.16).
    """
    if provider not in FILTERS:
        return [f"no filter is known for {provider}"]
    wanted = _wanted(filters)
    failures = (_failure(provider, key, wanted, event, context) for key in wanted)
    return [failure for failure in failures if failure]


def _wanted(filters: Filters) -> Wanted:
    """`org` is one more of `orgs`, and a lone value a list of one."""
    wanted: dict[str, list[str]] = {}
    for key, value in filters.items():
        values = value if isinstance(value, list) else [value]
        if values:
            wanted.setdefault("orgs" if key == "org" else key, []).extend(values)
    return wanted


def _failure(provider: str, key: str, wanted: Wanted, event: str, context: Context) -> str:
    """A sentence, or an empty text."""
    rule = FILTERS[provider].get(key)
    if rule is None:
        return f"{key}: {provider} has no such filter"
    values, has = ", ".join(map(str, wanted[key])), rule.has(event, context)
    if not has:
        return "" if rule.absent_passes(wanted) else f"{key}: none of {values}, the event has none"
    if any(value in wanted[key] for value in has):
        return ""
    return f"{key}: none of {values} in {', '.join(has)}"


def _of(key: str) -> Callable[[str, Context], list[str]]:
    return lambda _event, context: _texts(context.get(key))


def _texts(value: Any) -> list[str]:
    members = value if isinstance(value, list) else [value]
    return [member for member in members if isinstance(member, str) and member]


def _event(event: str, _context: Context) -> list[str]:
    return [event]


def _owner(_event: str, context: Context) -> list[str]:
    return [repo.partition("/")[0] for repo in _texts(context.get("repo"))]


FILTERS: dict[str, dict[str, Filter]] = {
    "github": {
        "events": Filter(_event),
        "actions": Filter(_of("action")),
        "repos": Filter(_of("repo")),
        "orgs": Filter(_owner),
        "labels": Filter(_of("labels")),  # those it has now, not the one just added
        "assignee": Filter(_of("assignee")),
        "author": Filter(_of("author")),
        "branches": Filter(_of("branch"), absent_passes=lambda _wanted: True),
        "conclusions": Filter(_of("conclusion"), absent_passes=lambda wanted: "events" in wanted),
    },
}
