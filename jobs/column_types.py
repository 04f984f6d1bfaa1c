"""Column types that mean the same on SQLite and PostgreSQL."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import sqlalchemy as sa


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
