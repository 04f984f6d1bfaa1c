"""The database's clock. All times in the database come from it."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa

from jobs.database_clock import utcnow

_NOW = sa.select(utcnow())


def now(connection: sa.Connection) -> dt.datetime:
    """Return the database's time."""
    return connection.execute(_NOW).scalar_one()
