"""Does a run that waits for a webhook go on with this one? See `runs.trigger_waits`."""

from __future__ import annotations

import json
from collections.abc import Collection
from functools import cached_property
from typing import Any

from runs.models import TriggerWait
from webhooks.models import Source
from webhooks.providers.base import Event

ABSENT = object()


class Arrived:
    """A verified request, as runs that wait look at it."""

    def __init__(self, provider: str, sources: Collection[Source], event: Event, body: bytes) -> None:
        self._names = {provider, *(source.name for source in sources)}
        self._event = event
        self._body = body

    def fits(self, wait: TriggerWait) -> bool:
        """Source or provider, event, and every value that is asked for, in the context or else in the body."""
        if wait.source and wait.source not in self._names:
            return False
        if wait.event and wait.event != self._event.event:
            return False
        return all(self._has(path, value) for path, value in wait.match.items())

    def _has(self, path: str, wanted: Any) -> bool:
        return any(same(at(path, value), wanted) for value in (self._event.context, self._payload))

    @cached_property
    def _payload(self) -> Any:
        try:
            return json.loads(self._body)
        except ValueError:
            return None


def at(path: str, value: Any) -> Any:
    """What lies at a dotted path, names of members and numbers of items; ABSENT if nothing does."""
    for name in path.split("."):
        if isinstance(value, dict) and name in value:
            value = value[name]
        elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
            value = value[int(name)]
        else:
            return ABSENT
    return value


def same(value: Any, wanted: Any) -> bool:
    """Equal, or written alike: models give numbers as text and the other way round."""
    if value is ABSENT:
        return False
    return bool(value == wanted) or written(value) == written(wanted)


def written(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True)
