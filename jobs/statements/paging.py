"""Pages of a list by age, and counts of rows that end at a limit."""

from __future__ import annotations

from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.column_types import UTCDateTime
from jobs.models import Batch, File, WebhookDelivery, WebhookEndpoint
from jobs.page_request import PageRequest

Listed = TypeVar("Listed", Batch, File, WebhookDelivery, WebhookEndpoint)


def read_page(
    session: Session,
    table: type[Listed],
    conditions: list[sa.ColumnElement[bool]],
    page: PageRequest,
    last: Listed | None,
) -> tuple[list[Listed], bool]:
    """Return a page of rows by age, and whether more follow.

    Args:
        session: of the unit of work.
        table: of the rows.
        conditions: that the rows meet.
        page: which page.
        last: the row with the id ``page.after``; None for the first page.
    """
    columns = (table.created_at, table.id)
    if last is not None:
        key = sa.tuple_(*columns)
        place = sa.tuple_(sa.literal(last.created_at, UTCDateTime()), sa.literal(last.id))
        conditions = [*conditions, key < place if page.newest_first else key > place]
    query = (
        sa.select(table)
        .where(*conditions)
        .order_by(*(c.desc() if page.newest_first else c.asc() for c in columns))
        .limit(page.limit + 1)
    )
    rows = session.scalars(query).all()
    return list(rows[: page.limit]), len(rows) > page.limit


def count_up_to(connection: sa.Connection, limit: int | None, rows: sa.Select[Any]) -> int:
    """Count the rows of a query, up to a limit if there is one."""
    counted = rows.limit(limit).subquery()
    return connection.scalar(sa.select(sa.func.count()).select_from(counted)) or 0
