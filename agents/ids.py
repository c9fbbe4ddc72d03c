"""Public ids: a word that says what it is, then time and chance, so that they sort by age and cannot be guessed."""

from __future__ import annotations

import secrets
import time
from datetime import datetime


def new_id(prefix: str) -> str:
    """`run_019a9f3c5b1e7c41d9e2a6f07b3d`: 12 hex digits of milliseconds since 1970, then 16 of chance."""
    return f"{prefix}_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(8)}"


def first_id(prefix: str, at: datetime) -> str:
    """Ids made at `at` or later are not below this: a time limit that the primary key's index serves."""
    return f"{prefix}_{int(at.timestamp() * 1000):012x}"
