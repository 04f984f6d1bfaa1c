"""The database's clock in statements, the same on SQLite and PostgreSQL. All times in the database come from it."""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from jobs.column_types import UTCDateTime


class utcnow(sa.sql.functions.GenericFunction[dt.datetime]):  # noqa: N801 (written like an SQL function)
    """The database's clock, ``seconds`` from now. Hosts' clocks may differ; this one is the same for all."""

    type = UTCDateTime()
    inherit_cache = True

    def __init__(self, seconds: float | sa.ColumnElement[float] = 0) -> None:
        is_expression = isinstance(seconds, sa.ColumnElement)
        super().__init__(seconds if is_expression else sa.literal(float(seconds), sa.Float))


def utcnow_once(seconds: float = 0) -> sa.ScalarSelect[dt.datetime]:
    """Return the same as `utcnow`, but evaluated once for a statement.

    Use it in conditions on an indexed column: PostgreSQL uses no index for a comparison with a
    volatile function.
    """
    return sa.select(utcnow(seconds)).scalar_subquery()


@compiles(utcnow, "postgresql")
def _utcnow_postgresql(element: utcnow, compiler: SQLCompiler, **kw: Any) -> str:
    # clock_timestamp moves on within a transaction; now() would be its start.
    seconds = compiler.process(element.clauses, **kw)
    return f"(clock_timestamp() + make_interval(secs => {seconds}))"


@compiles(utcnow, "sqlite")
def _utcnow_sqlite(element: utcnow, compiler: SQLCompiler, **kw: Any) -> str:
    # The trailing zeros make it the format SQLAlchemy stores, so that texts compare as times.
    seconds = compiler.process(element.clauses, **kw)
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now', ({seconds}) || ' seconds') || '000')"
