"""A delivery that starts nothing, stored by one statement.

Most of what a busy sender sends is wanted by nobody. The statement asks by itself whether that is still so: that no
source or trigger has changed since they were read, that no run waits for a webhook, and that the same body has not
started something before.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from django.db import connection, models

from runs import trigger_waits
from runs.models import TriggerWait
from webhooks import guards
from webhooks.listeners import REVISION
from webhooks.models import Delivery
from webhooks.received import Received

FIELDS = Delivery._meta.concrete_fields  # noqa: SLF001 - documented
AS_THEY_ARE = (models.CharField, models.PositiveIntegerField, models.PositiveSmallIntegerField, models.ForeignKey)
PREPARED = [(field.attname, None if isinstance(field, AS_THEY_ARE) else field) for field in FIELDS]
WAITS = f"SELECT 1 FROM {TriggerWait._meta.db_table} WHERE state = 'waiting' AND kind = %s"  # noqa: S608, SLF001
SAME = "SELECT 1 FROM webhooks_delivery WHERE provider = %s AND digest = %s AND received_at > %s AND matched > 0"


def store(received: Received, delivery: Delivery) -> bool:
    """False, and nothing is stored, if somebody has to look closer. Outside of a transaction, for it is one itself."""
    since = connection.ops.adapt_datetimefield_value(delivery.received_at - guards.window_of(received.sources[0]))
    with cursor_of_its_own() as cursor:
        cursor.execute(
            statement(),
            [
                *row(delivery),
                *(received.known.revision, trigger_waits.WEBHOOK),
                *(received.provider, received.digest, since),
            ],
        )
        return bool(cursor.rowcount)


def cursor_of_its_own() -> Any:
    """For PostgreSQL one that sends the values beside the statement: a body written into it is twice as long."""
    if connection.vendor != "postgresql":
        return connection.cursor()
    from django.db.backends.postgresql.base import ServerBindingCursor  # noqa: PLC0415 - psycopg need not be there

    connection.ensure_connection()
    binding: Any = ServerBindingCursor
    cursor = binding(connection.connection)
    return connection.make_debug_cursor(cursor) if connection.queries_logged else connection.make_cursor(cursor)


def row(delivery: Delivery) -> list[Any]:
    values = delivery.__dict__
    return [field.get_db_prep_save(values[name], connection) if field else values[name] for name, field in PREPARED]


@cache
def statement() -> str:
    columns = ", ".join(f'"{field.column}"' for field in FIELDS)
    return (
        f"INSERT INTO webhooks_delivery ({columns}) SELECT {', '.join(['%s'] * len(FIELDS))}"
        f" WHERE ({REVISION}) = %s AND NOT EXISTS ({WAITS}) AND NOT EXISTS ({SAME})"
    )
