"""Inserting rows that may be there already. SQLAlchemy has ``ON CONFLICT`` in the dialect of each database only."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite


def insert(connection: sa.Connection, table: Any) -> Any:
    """Return an ``INSERT`` that has ``on_conflict_do_nothing`` and ``on_conflict_do_update``."""
    dialect = sqlite if connection.dialect.name == "sqlite" else postgresql
    return dialect.insert(table)
