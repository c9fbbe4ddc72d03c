"""What every database of ours can hold: text without NUL and halves of characters, numbers that JSON knows."""

from __future__ import annotations

import math
import re
from typing import Any

_unstorable = re.compile("[\x00\ud800-\udfff]")


def text(value: str) -> str:
    """`value` with U+FFFD in place of NUL and of lone surrogates, which PostgreSQL refuses."""
    return _unstorable.sub("\N{REPLACEMENT CHARACTER}", value)


def json(value: Any) -> Any:
    """A JSON value with every string, key and number in it storable; NaN and infinities become null."""
    if isinstance(value, str):
        return text(value)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {text(str(key)): json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json(item) for item in value]
    return value
