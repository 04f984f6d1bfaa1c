"""Alembic migrations, and how the program runs them."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from jobs import db

#: The number of PostgreSQL's advisory lock that one who migrates holds: "helixq" as bytes.
LOCK = int.from_bytes(b"helixq")


class SchemaError(Exception):
    """The database's schema is not the program's; the message says what to do."""


def _config(connection: sa.Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    return config


def head() -> str:
    """Return the newest revision."""
    revision = ScriptDirectory.from_config(_config()).get_current_head()
    assert revision is not None  # noqa: S101 (the package holds its migrations)
    return revision


def current(engine: sa.Engine) -> str | None:
    """Return the database's revision; None for an empty database."""
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_revision()


def check(engine: sa.Engine) -> None:
    """Make sure that the database has the program's schema.

    Raises:
        SchemaError: it has another, or none.
    """
    found, wanted = current(engine), head()
    if found != wanted:
        raise SchemaError(
            f"the database's schema is {found or 'missing'} and should be {wanted}: "
            "run `helixq migrate`"
        )


def migrate(engine: sa.Engine, target: str = "head") -> None:
    """Bring the schema to ``target``: ``head``, ``base`` or a revision, up or down.

    Raises:
        alembic.util.CommandError: there is no such revision.
    """
    script = ScriptDirectory.from_config(_config())
    with engine.begin() as connection:
        db.begin(connection, write=True)
        if connection.dialect.name == "postgresql":
            # Of two who migrate at once, the second finds the work done.
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(LOCK)))
        now = MigrationContext.configure(connection).get_current_revision()
        ahead = [revision.revision for revision in script.iterate_revisions("head", now or "base")]
        wanted = head() if target == "head" else target
        up = wanted != "base" and (wanted == now or wanted in ahead)
        (command.upgrade if up else command.downgrade)(_config(connection), target)
