"""Files a run finds in its workspace because of what caused it.

Whoever makes runs registers how to load what is behind a `caused_by`; this module knows none of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from runs.models import Run

LARGEST = 1024 * 1024  # bytes of a payload that are put into a sandbox

_loaders: dict[str, Callable[[str], bytes | None]] = {}


def register(prefix: str, load: Callable[[str], bytes | None]) -> None:
    """`load(id)` gives the payload behind ids that start with `prefix`, or None."""
    _loaders[prefix] = load


def files(run: Run) -> dict[str, bytes]:
    """`trigger.json`: the whole payload where there is one, else what the prompt tells; none where there is neither.

    In place of one that is too large there is an object that says so, with what the prompt tells.
    """
    load = _loaders.get(run.caused_by.partition("_")[0])
    payload = load(run.caused_by) if load else None
    if payload is None and run.trigger_context:
        payload = json.dumps(run.trigger_context).encode()
    if payload is None:
        return {}
    return {"trigger.json": payload if len(payload) <= LARGEST else in_place_of(payload, run.trigger_context)}


def in_place_of(payload: bytes, context: dict[str, Any]) -> bytes:
    """JSON that was cut would be none."""
    instead = {"truncated": True, "bytes": len(payload)}
    whole = json.dumps({**instead, "context": context}).encode()
    return whole if len(whole) <= LARGEST else json.dumps(instead).encode()
