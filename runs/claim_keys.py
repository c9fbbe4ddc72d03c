"""What an event is about, as one text: an agent's template filled in from the trigger's context."""

from __future__ import annotations

from collections.abc import Mapping
from string import Formatter
from typing import Any

LONGEST = 200  # characters; a longer key is none


def key_for(template: str, context: Mapping[str, Any]) -> str:
    """`github://{repo}/issues/{number}` with the context's values; empty where it lacks one of them."""
    names = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
    values = {name: context.get(name) for name in names}
    if not all(isinstance(value, str | int) and value != "" for value in values.values()):
        return ""
    key = template.format_map(values)
    return key if len(key) <= LONGEST else ""
