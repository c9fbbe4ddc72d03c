"""Does an event start an agent? The filters of a trigger, and why one failed (spec/action-llama.md 2.4 and 2.6).

All filters must pass, any of a filter's values is enough, values are equal to the letter, an empty list is no filter.
`not_<filter>` passes where the event has none of the values. `match.<dotted path>` asks what a body has there.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Generic, TypeVar

from agents.manifest.filters import MATCH, NOT, split
from agents.path_filter import PathFilter
from agents.patterns import BadPattern
from webhooks.providers.base import Event
from webhooks.providers.payloads import at

Filters = Mapping[str, str | list[str]]
Values = Sequence[str]
Hit = Callable[[Values], bool]  # is what an event has among what is wanted?
Key = TypeVar("Key")

MOST_SHOWN = 10  # values of an event in a sentence


def equal(wanted: Values) -> Hit:
    values = frozenset(wanted)
    return lambda had: not values.isdisjoint(had)


def below(patterns: Values) -> Hit:
    """Raises BadPattern."""
    return PathFilter(patterns).takes_one_of


def never(_names_events: bool) -> bool:
    return False


@dataclass(frozen=True)
class Filter:
    """One filter: the values an event has for it, how they are compared, and whether an event that has none passes.

    The latter may depend on whether the trigger says as well which `events` it is about.
    """

    has: Callable[[Event], Values]
    among: Callable[[Values], Hit] = equal
    absent_passes: Callable[[bool], bool] = never


@dataclass(frozen=True, eq=False)
class Asked:
    """One filter of a trigger, ready to be asked. With a `fault`, a sentence, nothing passes."""

    key: str  # as in the definition, but for `org`, which is one more of `orgs`
    wanted: Values
    rule: Filter
    hit: Hit
    negated: bool = False
    absent_passes: bool = False
    fault: str = ""

    @property
    def needs_one(self) -> bool:
        """Only events that have one of exactly these values pass."""
        return self.rule.among is equal and not (self.negated or self.absent_passes or self.fault)

    def takes(self, had: Values) -> bool:
        if self.fault:
            return False
        if self.negated:
            return not self.hit(had)
        return self.hit(had) if had else self.absent_passes


@dataclass(frozen=True)
class Verdict:
    """What became of one filter. `sentence` says it in words, with the filter's name, and not all values of many."""

    filter: str
    wanted: Values
    had: Values
    passed: bool
    sentence: str


def matches(provider: str, filters: Filters, event: Event) -> bool:
    looked = Looked(event)
    return all(map(looked.passes, asked_by(provider, filters)))


def explain(provider: str, filters: Filters, event: Event) -> list[Verdict]:
    """Each filter of a trigger in its order; the event matches if all of them passed.

    A filter or a provider that is not known fails: what nobody understands must not start an agent.

    An event without a branch passes `branches`, as in the spec. An event without a conclusion passes `conclusions`
    only if `events` is given: where nothing else says which events are meant, "the failed ones" cannot mean every
    comment and push (spec 12.16).
    """
    looked = Looked(event)
    return [_verdict(asked, looked) for asked in asked_by(provider, filters)]


class Looked:
    """An event as many triggers look at it: each value is found once, each question answered once."""

    def __init__(self, event: Event) -> None:
        self._event = event
        self._had: dict[Filter, Values] = {}
        self._passed: dict[Asked, bool] = {}

    def had(self, rule: Filter) -> Values:
        if rule not in self._had:
            self._had[rule] = rule.has(self._event)
        return self._had[rule]

    def passes(self, asked: Asked) -> bool:
        if asked not in self._passed:
            self._passed[asked] = asked.takes(self.had(asked.rule))
        return self._passed[asked]


class Index(Generic[Key]):
    """Which of many triggers of one provider an event starts, without asking all of them.

    Each is filed under the values of the one filter it cannot do without that fewest others share.
    """

    def __init__(self, provider: str, triggers: Iterable[tuple[Key, Filters]]) -> None:
        self._triggers = [(key, asked_by(provider, filters)) for key, filters in triggers]
        shared = Counter(pair for _, filters in self._triggers for asked in filters for pair in _places(asked))
        self._filed: dict[Filter, dict[str, list[int]]] = {}
        self._rest: list[int] = []
        for number, (_, filters) in enumerate(self._triggers):
            candidates = [asked for asked in filters if asked.needs_one]
            if not candidates:
                self._rest.append(number)
                continue
            rarest = min(candidates, key=lambda asked: sum(shared[place] for place in _places(asked)))
            for rule, value in _places(rarest):
                self._filed.setdefault(rule, {}).setdefault(value, []).append(number)

    def matching(self, event: Event) -> list[Key]:
        """In the order in which the triggers were given."""
        looked = Looked(event)
        candidates = set(self._rest)
        for rule, filed in self._filed.items():
            for value in looked.had(rule):
                candidates.update(filed.get(value, ()))
        found = (self._triggers[number] for number in sorted(candidates))
        return [key for key, filters in found if all(map(looked.passes, filters))]


def _places(asked: Asked) -> list[tuple[Filter, str]]:
    return [(asked.rule, value) for value in dict.fromkeys(asked.wanted)] if asked.needs_one else []


def asked_by(provider: str, filters: Filters) -> tuple[Asked, ...]:
    """The filters of a trigger, ready to be asked of any number of events."""
    if provider not in FILTERS:
        return (_unknown("", (), f"no filter is known for {provider}"),)
    wanted: dict[str, list[str]] = {}
    for key, value in filters.items():
        values: list[Any] = value if isinstance(value, list) else [value]
        if values:
            name = SAME.get(key, key)
            wanted.setdefault(name, []).extend(value for value in values if isinstance(value, str))
    return tuple(_asked(provider, key, tuple(values), "events" in wanted) for key, values in wanted.items())


@lru_cache(maxsize=20_000)  # many triggers ask the same
def _asked(provider: str, key: str, wanted: Values, names_events: bool) -> Asked:
    rule = _rule(provider, key.removeprefix(NOT))
    if rule is None:
        return _unknown(key, wanted, f"{key}: {provider} has no such filter")
    try:
        hit = rule.among(wanted)
    except BadPattern as error:
        return _unknown(key, wanted, f"{key}: {error}")
    negated = key.startswith(NOT)
    return Asked(key, wanted, rule, hit, negated=negated, absent_passes=rule.absent_passes(names_events))


@lru_cache(maxsize=2_000)  # one object for one question
def _rule(provider: str, name: str) -> Filter | None:
    kind, path = split(name)
    rule = FILTERS[provider].get(kind)
    if bool(path) is not (rule is IN_BODY):
        return None
    return Filter(partial(_body_at, path=path)) if path else rule


def _unknown(key: str, wanted: Values, fault: str) -> Asked:
    return Asked(key, wanted, Filter(lambda _event: ()), equal(()), fault=fault)


def _verdict(asked: Asked, looked: Looked) -> Verdict:
    had, passed = looked.had(asked.rule), looked.passes(asked)
    return Verdict(asked.key, asked.wanted, had, passed, _sentence(asked, had, passed=passed))


def _sentence(asked: Asked, had: Values, *, passed: bool) -> str:
    if asked.fault:
        return asked.fault
    wanted, shown = ", ".join(asked.wanted), ", ".join(had[:MOST_SHOWN])
    shown += f" and {len(had) - MOST_SHOWN} more" if len(had) > MOST_SHOWN else ""
    one_or_none = "none of" if passed is asked.negated else "one of"
    return f"{asked.key}: {one_or_none} {wanted}{f' in {shown}' if had else ', the event has none'}"


def _of(key: str) -> Callable[[Event], Values]:
    return lambda event: _texts(event.context.get(key))


def _texts(value: Any) -> Values:
    members = value if isinstance(value, list) else [value]
    return tuple(member for member in members if isinstance(member, str) and member)


def _event(event: Event) -> Values:
    return (event.event,)


def _sender(event: Event) -> Values:
    return _texts(event.sender)


def _owner(event: Event) -> Values:
    return tuple(repo.partition("/")[0] for repo in _texts(event.context.get("repo")))


def _groups(event: Event) -> Values:
    """GitLab's `a/b/project` is in the groups `a` and `a/b`."""
    return tuple(
        repo[:end] for repo in _texts(event.context.get("repo")) for end, sign in enumerate(repo) if sign == "/"
    )


def _paths(event: Event) -> Values:
    return _texts(event.facts.get("paths", []))


def _command(event: Event) -> Values:
    return _texts(event.context.get("action")) if event.event in {"application_command", "autocomplete"} else ()


def _body_at(event: Event, path: str) -> Values:
    """What stands there, as text; the members of a list, each."""
    found = at(event.facts.get("body"), path)
    members = found if isinstance(found, list) else [found]
    return tuple(member if isinstance(member, str) else json.dumps(member) for member in members if member is not None)


SAME = {"org": "orgs", f"{NOT}org": f"{NOT}orgs"}
EVENTS = Filter(_event)
ACTIONS = Filter(_of("action"))
REPOS = Filter(_of("repo"))
OWNERS = Filter(_owner)
LABELS = Filter(_of("labels"))  # those it has now, not the one just added
BRANCHES = Filter(_of("branch"), absent_passes=lambda _names_events: True)
CONCLUSIONS = Filter(_of("conclusion"), absent_passes=lambda names_events: names_events)
PEOPLE = {"assignee": Filter(_of("assignee")), "author": Filter(_of("author"))}
PATHS = Filter(_paths, among=below)
IN_BODY = Filter(lambda _event: ())  # stands for what is asked of one path
ABOUT = {"events": EVENTS, "actions": ACTIONS}
CODE = {
    **ABOUT, **PEOPLE, "repos": REPOS, "labels": LABELS, "branches": BRANCHES, "conclusions": CONCLUSIONS,
}  # fmt: skip
ANYBODY = {**CODE, MATCH: IN_BODY}
OWN: dict[str, dict[str, Filter]] = {
    "github": {**CODE, "orgs": OWNERS, "org": OWNERS, "paths": PATHS},
    "gitlab": {**CODE, "orgs": Filter(_groups), "org": Filter(_groups), "paths": PATHS},
    "sentry": {"resources": EVENTS, "actions": ACTIONS},
    "linear": {**ABOUT, **PEOPLE, "organizations": REPOS, "labels": LABELS},
    "mintlify": {**ABOUT, "repos": REPOS, "projects": REPOS, "branches": BRANCHES, "conclusions": CONCLUSIONS},
    "discord": {
        "events": EVENTS,
        "guilds": REPOS,
        "channels": BRANCHES,  # which is what a channel's id is told as
        "commands": Filter(_command, absent_passes=lambda _names_events: True),
    },
    "slack": {"events": EVENTS, "channels": Filter(_of("channel")), "team_ids": REPOS},
    "twitter": {"events": EVENTS, "repos": REPOS, "users": REPOS},
    "standardwebhooks": ANYBODY,
    "hmac": ANYBODY,
    "generic": ANYBODY,
    "test": {**ABOUT, "repos": REPOS},
}
FILTERS = {provider: {**filters, "senders": Filter(_sender)} for provider, filters in OWN.items()}
