"""The migrations of the schema (Alembic), and how the program runs them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from jobs.database_engine import begin
from jobs.errors import UserError
from migrations import compatibility, statistics

#: The key of the advisory lock that a migration holds in PostgreSQL: "helixq" as bytes.
LOCK = int.from_bytes(b"helixq")
#: Timeouts that a role or database may set, and that a migration of a long history would exceed.
TIMEOUTS = (
    "statement_timeout",
    "lock_timeout",
    "idle_in_transaction_session_timeout",
    "transaction_timeout",
)
_UNLIMITED = sa.text("SELECT set_config(name, '0', true) FROM pg_settings WHERE name = :name")


class SchemaError(UserError):
    """The database or its schema does not fit the program."""


def _config(connection: sa.Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


@cache
def _scripts() -> ScriptDirectory:
    """Return the package's migrations, which are modules that take some time to import."""
    return ScriptDirectory.from_config(_config())


def head() -> str:
    """Return the newest revision."""
    revision = _scripts().get_current_head()
    assert revision is not None  # noqa: S101 (the package holds its migrations)
    return revision


def current(engine: sa.Engine) -> str | None:
    """Return the database's revision; None for an empty database.

    Raises:
        SchemaError: the database's encoding is not UTF8.
    """
    with engine.connect() as connection:
        _check_encoding(connection)
        return MigrationContext.configure(connection).get_current_revision()


def check(engine: sa.Engine) -> None:
    """Check that the database has the program's schema, or a newer one that says that the program runs on it.

    Raises:
        SchemaError: it has another schema or none; there is no database; or its encoding is not UTF8.
    """
    _check_file(engine.url)
    actual, expected = current(engine), head()
    if actual is not None and not _known(actual):
        with engine.connect() as connection:
            if compatibility.suits(connection, expected):
                return
        raise SchemaError(_newer(actual))
    if actual != expected:
        raise SchemaError(
            f"the database's schema is {actual or 'missing'} and should be {expected}: "
            "run `helixq migrate`"
        )


def migrate(engine: sa.Engine, target: str = "head") -> None:
    """Bring the schema to ``target``: ``head``, ``base`` or a revision, up or down.

    A newer program's schema stays as it is, where ``target`` is ``head`` and this program runs on it.

    Raises:
        alembic.util.CommandError: there is no such revision.
        SchemaError: the database's encoding is not UTF8, or its schema is of a newer program.
    """
    with _transaction(engine) as connection:
        if connection.dialect.name == "postgresql":
            _check_encoding(connection)
            for limit in TIMEOUTS:
                # One that an older PostgreSQL does not know is not set.
                connection.execute(_UNLIMITED, {"name": limit})
            # Only one migration runs at a time; the next one finds nothing to do.
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
        now = MigrationContext.configure(connection).get_current_revision()
        if now is not None and not _known(now):
            if target == "head" and compatibility.suits(connection, head()):
                return
            raise SchemaError(_newer(now))
        ahead = [
            revision.revision for revision in _scripts().iterate_revisions("head", now or "base")
        ]
        target_revision = head() if target == "head" else target
        up = target_revision != "base" and (target_revision == now or target_revision in ahead)
        if target_revision != now:
            (command.upgrade if up else command.downgrade)(_config(connection), target)
        after = MigrationContext.configure(connection).get_current_revision()
        compatibility.write(connection, _scripts(), after)
        statistics.write(connection)


@contextmanager
def _transaction(engine: sa.Engine) -> Iterator[sa.Connection]:
    """Begin a transaction in which SQLite tables can be copied.

    SQLite changes some tables only by a copy that takes the place of the original. To drop the
    original deletes its rows, and with foreign keys all rows that refer to them. They can be switched
    off only outside a transaction, so they are checked at its end.
    """
    with engine.connect() as connection:
        if engine.dialect.name != "sqlite":
            with connection.begin():
                yield connection
            return
        connection.exec_driver_sql("PRAGMA foreign_keys=OFF")
        connection.commit()
        try:
            with connection.begin():
                begin(connection, write=True)
                yield connection
                if broken := connection.exec_driver_sql("PRAGMA foreign_key_check").all():
                    raise SchemaError(f"the migration would break {len(broken)} foreign keys")
        finally:
            connection.exec_driver_sql("PRAGMA foreign_keys=ON")
            connection.commit()


def _known(revision: str) -> bool:
    return any(known.revision == revision for known in _scripts().walk_revisions())


def _newer(actual: str) -> str:
    return (
        f"the database's schema is {actual}, of a newer HelixQ, and should be {head()}: install that "
        f"version, or go back with its `helixq migrate --to {head()}`"
    )


def _check_file(url: sa.URL) -> None:
    """Check that a SQLite file exists, without opening it: that would create it."""
    if url.get_backend_name() != "sqlite":
        return
    file = Path(url.database or "").absolute()
    try:
        exists = file.exists()
    except PermissionError:
        return  # SQLite reports it.
    if not exists:
        raise SchemaError(
            f"there is no database {file}: run `helixq migrate`, or set HELIXQ_DATA_DIR or "
            "HELIXQ_DATABASE_URL to where it is"
        )


def _check_encoding(connection: sa.Connection) -> None:
    """Check that a PostgreSQL database can store every text."""
    if connection.dialect.name != "postgresql":
        return
    name, encoding = connection.exec_driver_sql(
        "SELECT current_database(), current_setting('server_encoding')"
    ).one()
    if encoding != "UTF8":
        another = connection.dialect.identifier_preparer.quote(f"{name}_utf8")
        raise SchemaError(
            f"the database {name} has the encoding {encoding} and must have UTF8: make another one "
            f"with `CREATE DATABASE {another} TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C.UTF-8'`"
        )
