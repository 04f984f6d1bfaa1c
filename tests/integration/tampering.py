"""Changing the database behind the program's back, and what `verify` says of it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.database import Database
from jobs.errors import TamperedError
from jobs.protocol.history import history
from jobs.use_cases import verifying

#: The triggers that protect histories, by their tables.
TRIGGERS = {
    "attempts_keep": "attempts",
    "attempts_keep_server": "attempts",
    "reviews_keep": "reviews",
    "reviews_keep_rows": "reviews",
    "erasures_keep": "erasures",
    "erasures_keep_rows": "erasures",
    "reviews_keep_origin": "reviews",
    "erasures_keep_origin": "erasures",
}

#: Values for columns where SQL cannot make one from the old.
NEW = {
    "status": "'failed'",
    "role": "'critic'",
    "input_items": "'[1]'",
    "turns": '\'[{"role": "user", "text": "x"}]\'',
    "options": "'{\"a\": 1}'",
    "stop": "'[\"changed\"]'",
    "restarts": '\'[{"run": 2, "at": "2026-01-02T03:04:05.678+00:00", "model": "x", "reason": "x"}]\'',
    "retries": '\'[{"at": "2026-01-02T03:04:05.678+00:00", "finished_at": "2026-01-02T03:04:05.678+00:00", '
    '"code": "x", "entry": 0}]\'',
    "metadata": '\'{"team": "red"}\'',
    "worker_id": "'worker-2'",
    "runtime": '\'{"engine": "other"}\'',
    "log_salt": "NULL",
    "log_salts": "'{}'",
    "erased": '\'{"/question": "sha256:00"}\'',
    "delta_lengths": "'[1]'",
    "background": "NOT background",
    "tags": "'[\"changed\"]'",
    "texts": "'[\"/system\"]'",
    "critique": "0",
    "regeneration": "0",
}


def is_as_recorded(database: Database) -> verifying.Report:
    return verifying.verify(database, history)


def drop_triggers(connection: sa.Connection) -> None:
    for name, table in TRIGGERS.items():
        on = "" if connection.dialect.name == "sqlite" else f" ON {table}"
        connection.exec_driver_sql(f"DROP TRIGGER IF EXISTS {name}{on}")


def tamper(database: Database, *statements: Any) -> str:
    """Change the database behind the program's back; return what `verify` says."""
    with database.write() as connection:
        drop_triggers(connection)
        for statement in statements:
            connection.execute(statement if not isinstance(statement, str) else sa.text(statement))
    with pytest.raises(TamperedError) as caught:
        is_as_recorded(database)
    return str(caught.value)


def new_value(column: sa.ColumnElement[Any], dialect: sa.Dialect) -> str:
    """Return another value for a column, in SQL."""
    if isinstance(column.type, sa.Integer | sa.Float) and column.name not in NEW:
        return f"coalesce({column.name}, 0) + 1"
    kind = column.type.compile(dialect)
    literal = NEW.get(column.name)
    if literal is None:
        literal = "'2026-01-02 03:04:05.678000'" if column.name.endswith("_at") else "'changed'"
    cast = (
        dialect.name == "postgresql" and literal[0] == "'" and not isinstance(column.type, sa.Enum)
    )
    return f"CAST({literal} AS {kind})" if cast else literal


def change(database: Database, *statements: str) -> str:
    """Change the database in a transaction that is rolled back; return what `verify` says in it."""
    with changed(database, *statements) as shared, pytest.raises(TamperedError) as caught:
        verifying.verify(shared, history)
    return str(caught.value)


@contextmanager
def changed(database: Database, *statements: str) -> Iterator[Database]:
    """Change the database in a transaction; what reads it meanwhile sees that. Roll it back."""
    with database.engine.connect() as connection:
        if database.engine.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        drop_triggers(connection)
        for statement in statements:
            connection.exec_driver_sql(statement.replace("%", "%%"))
        shared: Any = _Shared(connection)
        try:
            yield shared
        finally:
            connection.rollback()


class _Shared:
    """Stands for the database in a transaction that is not committed."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection

    def read_session(self, **_: Any) -> Any:
        return sa.orm.Session(self._connection)
