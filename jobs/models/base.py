"""What all tables share: the declarative base, and kinds of columns and indexes."""

from __future__ import annotations

import datetime as dt
from enum import StrEnum
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase

from jobs.column_types import UTCDateTime


class Base(DeclarativeBase):
    metadata = sa.MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012 (SQLAlchemy's way to declare it)
        dt.datetime: UTCDateTime,
        dict[str, Any]: sa.JSON().with_variant(JSONB, "postgresql"),
        dict[str, str]: sa.JSON().with_variant(JSONB, "postgresql"),
        list[str]: sa.JSON().with_variant(JSONB, "postgresql"),
        list[int]: sa.JSON().with_variant(JSONB, "postgresql"),
        list[dict[str, Any]]: sa.JSON().with_variant(JSONB, "postgresql"),
    }


def enum(kind: type[StrEnum], name: str) -> sa.Enum:
    """Store an enum's values as text with a check, the same on both databases."""
    return sa.Enum(
        kind,
        name=name,
        native_enum=False,
        create_constraint=True,
        length=16,
        values_callable=lambda members: [member.value for member in members],
    )


def partial(name: str, *columns: str, where: str, unique: bool = False) -> sa.Index:
    """Return a partial index. SQLite uses it only for statements that contain ``where`` literally."""
    condition = sa.text(where)
    return sa.Index(
        name, *columns, unique=unique, sqlite_where=condition, postgresql_where=condition
    )


ROW_ID = sa.BigInteger().with_variant(sa.Integer, "sqlite")
