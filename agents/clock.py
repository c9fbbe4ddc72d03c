"""The one place that asks what time it is, so that a test can answer."""

from __future__ import annotations

from datetime import UTC, datetime


def now() -> datetime:
    """Aware UTC."""
    return datetime.now(UTC)
