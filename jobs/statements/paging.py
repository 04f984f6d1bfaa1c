"""Pages of a list by age, and counts of rows that end at a limit."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa

from jobs.column_types import UTCDateTime
from jobs.models import Batch, File, WebhookDelivery, WebhookEndpoint

Listed = Batch | File | WebhookDelivery | WebhookEndpoint


def by_age(
    query: sa.Select[Any], table: type[Listed], after: Listed | None, *, newest_first: bool
) -> sa.Select[Any]:
    """Order a query by the age of its rows, and begin after a row.

    Args:
        query: of a table.
        table: of the query.
        after: the last row of the page before; None for the first page.
        newest_first: the order.
    """
    columns = (table.created_at, table.id)
    query = query.order_by(*(c.desc() if newest_first else c.asc() for c in columns))
    if after is None:
        return query
    key = sa.tuple_(*columns)
    cursor = sa.tuple_(sa.literal(after.created_at, UTCDateTime()), sa.literal(after.id))
    return query.where(key < cursor if newest_first else key > cursor)


def count_up_to(connection: sa.Connection, limit: int | None, rows: sa.Select[Any]) -> int:
    """Count the rows of a query, up to a limit if there is one."""
    counted = rows.limit(limit).subquery()
    return connection.scalar(sa.select(sa.func.count()).select_from(counted)) or 0
