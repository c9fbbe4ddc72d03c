"""How many requests were refused: counted in memory, and written once a second, so that a flood of them is read only.

What a process has counted and not written when it is killed is lost; it is a number for people, and no more.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Collection

from django.db.models import F

from agents import clock
from webhooks.models import Source

EVERY = 1.0  # seconds

_lock = threading.Lock()
_counted = Counter[int]()  # by source, not written yet
_written: dict[int, float] = {}  # by source, when it was last


def count(source_ids: Collection[int]) -> None:
    """One request that these sources have refused."""
    now = time.monotonic()
    with _lock:
        _counted.update(source_ids)
        due = any(now - _written.get(source_id, -EVERY) >= EVERY for source_id in source_ids)
    if due:
        write()


def write() -> None:
    """What has been counted so far."""
    with _lock:
        counted = dict(_counted)
        _counted.clear()
        _written.update(dict.fromkeys(counted, time.monotonic()))
    for source_id, times in counted.items():
        rows = Source.objects.filter(pk=source_id)
        rows.update(refused_count=F("refused_count") + times, refused_at=clock.now())
