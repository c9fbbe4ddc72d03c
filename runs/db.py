"""Database connections and waiting."""

from __future__ import annotations

from django.db import connection


def release_connection() -> None:
    """Call before every blocking wait: a pooled connection stays with its thread until it is closed.

    Hundreds of steps wait at any time on a pool of a dozen connections. SQLite has no pool and is kept open.
    """
    if connection.vendor != "sqlite":
        connection.close()
