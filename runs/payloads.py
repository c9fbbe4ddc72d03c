"""Files a run finds in its workspace because of what caused it.

Whoever makes runs registers how to load what is behind a `caused_by`; this module knows none of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable

from runs.models import Run

LARGEST = 5 * 1024 * 1024  # bytes of a payload that are put into a sandbox

_loaders: dict[str, Callable[[str], bytes | None]] = {}


def register(prefix: str, load: Callable[[str], bytes | None]) -> None:
    """`load(id)` gives the payload behind ids that start with `prefix`, or None."""
    _loaders[prefix] = load


def files(run: Run) -> dict[str, bytes]:
    """`trigger.json`: the whole payload where there is one and it is not too large, else what the prompt tells."""
    load = _loaders.get(run.caused_by.partition("_")[0])
    payload = load(run.caused_by) if load else None
    if payload is not None and len(payload) <= LARGEST:
        return {"trigger.json": payload}
    if run.trigger_context:
        return {"trigger.json": json.dumps(run.trigger_context).encode()}
    return {}
