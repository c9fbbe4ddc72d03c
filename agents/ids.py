"""Public ids: a word that says what it is, then time and chance, so that they sort by age and cannot be guessed."""

from __future__ import annotations

import secrets
import time
from datetime import datetime


def new_id(prefix: str) -> str:
    """`run_019a9f3c5b1e7c41d9e2a6f07b3d`: 12 hex digits of milliseconds since 1970, 3 of parts of one, 13 of chance.

    The parts, 4096 to the millisecond, keep in order what one machine makes at almost the same time.
    """
    milliseconds, nanoseconds = divmod(time.time_ns(), 1_000_000)
    return f"{prefix}_{milliseconds:012x}{nanoseconds * 4096 // 1_000_000:03x}{secrets.randbits(52):013x}"


def first_id(prefix: str, at: datetime) -> str:
    """Ids made at `at` or later are not below this: a time limit that the primary key's index serves."""
    return f"{prefix}_{int(at.timestamp() * 1000):012x}"
