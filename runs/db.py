"""What Django's own vocabulary lacks: connections and waiting, and an UPDATE that says what it has written."""

from __future__ import annotations

from typing import Any

from django.db import connection, connections
from django.db.models import QuerySet
from django.db.models.sql.subqueries import UpdateQuery
from django.db.transaction import mark_for_rollback_on_error


def release_connection() -> None:
    """Call before every blocking wait: a pooled connection stays with its thread until it is closed.

    Hundreds of steps wait at any time on a pool of a dozen connections. SQLite has no pool and is kept open.
    """
    if connection.vendor != "sqlite":
        connection.close()


def update_returning(rows: QuerySet[Any], column: str, **sets: Any) -> Any:
    """`rows.update(**sets)` on at most one row, and the new value of its `column`; None if no row fits.

    The value is that of this very UPDATE. A SELECT after it would be one more way to the database, and every
    write of a step begins with this.
    """
    query: Any = rows.query.chain(UpdateQuery)
    query.add_update_values(sets)
    returning = connections[rows.db].ops.quote_name(column)
    with mark_for_rollback_on_error(using=rows.db):
        sql, parameters = query.get_compiler(rows.db).as_sql()
        with connections[rows.db].cursor() as cursor:
            cursor.execute(f"{sql} RETURNING {returning}", parameters)
            found = cursor.fetchall()
    assert len(found) <= 1, "one row at most"
    return found[0][0] if found else None
