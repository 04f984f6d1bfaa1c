"""Column types and a clock that mean the same on SQLite and PostgreSQL."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler


class ExactText(sa.types.TypeDecorator[str]):
    """Text that keeps every character, NUL included.

    PostgreSQL's ``text`` takes no NUL, and SQLite's functions and shell stop at one.
    Both store NUL as ``␛0`` and a literal ``␛`` (U+241B) as ``␛␛``; Python sees the
    original. All other text is stored as it is, readable and searchable in SQL.
    """

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: sa.Dialect) -> str | None:  # noqa: ARG002 (SQLAlchemy's signature)
        return None if value is None else value.replace("␛", "␛␛").replace("\0", "␛0")

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> str | None:  # noqa: ARG002 (SQLAlchemy's signature)
        if value is None or "␛" not in value:
            return value
        return "␛".join(part.replace("␛0", "\0") for part in value.split("␛␛"))


class ExactJSON(sa.types.TypeDecorator[Any]):
    """A JSON value as text, kept as it came: PostgreSQL's ``jsonb`` takes no NUL and keeps no order."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str | None:  # noqa: ARG002 (SQLAlchemy's signature)
        # In ASCII, a NUL is an escape sequence.
        return None if value is None else json.dumps(value, separators=(",", ":"))

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> Any:  # noqa: ARG002 (SQLAlchemy's signature)
        return None if value is None else json.loads(value)


class UTCDateTime(sa.types.TypeDecorator[dt.datetime]):
    """An aware UTC time with microseconds: ``timestamptz``, or text that sorts by time."""

    impl = sa.DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(
        self,
        value: dt.datetime | None,
        dialect: sa.Dialect,
    ) -> dt.datetime | None:
        if value is None:
            return None
        value = value.astimezone(dt.UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(
        self,
        value: dt.datetime | None,
        dialect: sa.Dialect,
    ) -> dt.datetime | None:
        if value is None:
            return None
        return (
            value.replace(tzinfo=dt.UTC) if dialect.name == "sqlite" else value.astimezone(dt.UTC)
        )


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
