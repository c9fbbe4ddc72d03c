"""Patterns for paths, as models give them."""

from __future__ import annotations

from agents.patterns import BadPattern, PathPattern
from runs.tools.base import ToolFailed


def compiled(pattern: str) -> PathPattern:
    """Raises ToolFailed."""
    try:
        return PathPattern(pattern)
    except BadPattern as error:
        raise ToolFailed(str(error)) from error
