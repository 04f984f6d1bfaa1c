"""The database connection, and column types that mean the same on SQLite and PostgreSQL."""

from __future__ import annotations

import datetime as dt
import sqlite3
import time
from typing import Any

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from jobs import database_url

#: Seconds to wait for another writer, if a SQLite URL does not say it (``timeout``).
SQLITE_BUSY_TIMEOUT = 30.0
#: What a PostgreSQL URL leaves out: seconds to wait for a connection, and seconds or milliseconds after
#: which a network that swallows everything counts as gone: less than a lease, so that whoever waits finds
#: out in time.
POSTGRESQL = {
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "fallback_application_name": "helixq",
}


#: The most connections of a process.
POOL_SIZE = 10
#: SQLSTATE of a write in a transaction that may only read, as on a standby.
READ_ONLY = "25006"


def connect(url: str) -> sa.Engine:
    """Make the engine for ``url``; nothing is opened before the first query.

    Its connections keep nothing in a PostgreSQL that outlives a transaction, prepared statements
    included (unless the URL asks for them): a pooler in between, such as PgBouncer in transaction mode,
    may give every transaction another server connection.
    """
    # No thread holds a connection while it waits for a job or computes, and none takes a second one: more
    # threads than connections queue for a moment. Whoever comes alone gets the connection that was used
    # last, whose caches are warm.
    pool: dict[str, Any] = {"pool_size": POOL_SIZE, "max_overflow": 0, "pool_use_lifo": True}
    given = sa.make_url(url)
    if given.get_backend_name() != "sqlite":
        options = {
            **{name: value for name, value in POSTGRESQL.items() if name not in given.query},
            "prepare_threshold": database_url.prepare_threshold(given),
            # Not what a role, a database or the environment says: texts are Unicode.
            "client_encoding": "UTF8",
        }
        engine = sa.create_engine(
            given,
            pool_pre_ping=True,
            connect_args=options,
            # Whatever the server, the database or the role has for a default.
            isolation_level="READ COMMITTED",
            **pool,
        )
        sa.event.listen(engine, "connect", _speak_iso)
        sa.event.listen(engine, "handle_error", _leave_a_standby)
        return engine
    timeout = float(str(given.query.get("timeout", SQLITE_BUSY_TIMEOUT)))
    engine = sa.create_engine(given, connect_args={"timeout": timeout}, **pool)

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # The driver must not begin transactions by itself: `begin` does.
        connection.isolation_level = None
        # Readers and one writer at a time go on side by side.
        _keep_a_log(connection, timeout)
        # An accepted job survives a power failure: every commit reaches the disk.
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    return engine


def _speak_iso(connection: Any, _record: Any) -> None:
    """Ask for times that the driver can read, where a role or a database has other ones.

    Poolers know this setting, and keep it for each client.
    """
    if not connection.info.parameter_status("DateStyle").startswith("ISO"):
        connection.execute("SET DateStyle TO ISO")
        connection.commit()


def _leave_a_standby(context: sa.ExceptionContext) -> None:
    """Give a connection up on which nothing can be written: after a failover there is a better one."""
    if getattr(context.original_exception, "sqlstate", None) == READ_ONLY:
        context.is_disconnect = True


def _keep_a_log(connection: sqlite3.Connection, timeout: float) -> None:
    """Switch a database to its write-ahead log.

    Where several open a new one at once, some are told that it is locked: SQLite's own waiting
    (``timeout`` seconds) does not cover this lock.
    """
    give_up = time.monotonic() + timeout
    while True:
        try:
            [mode] = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
            time.sleep(0.01)  # SQLite tells nobody when a lock is free
        else:
            break
    if mode != "wal":
        raise sqlite3.OperationalError(
            "its file system, perhaps a network's, does not carry a write-ahead log"
        )


def begin(connection: sa.Connection, *, write: bool) -> None:
    """Begin a transaction on a connection that SQLAlchemy began one on: SQLite's driver did not.

    One that reads first and writes later fails at once in SQLite when another writer came between;
    one that takes the write lock first waits its turn.

    A call and no listener to SQLAlchemy's event: with a single listener each statement asks for all
    kinds of them, which takes a tenth of a claim's time.

    Args:
        connection: of an engine that `connect` made.
        write: whether it will write.
    """
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


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
    """The database's clock, ``seconds`` from now: hosts' clocks may differ, this one cannot."""

    type = UTCDateTime()
    inherit_cache = True

    def __init__(self, seconds: float | sa.BindParameter[float] = 0) -> None:
        given = isinstance(seconds, sa.BindParameter)
        super().__init__(seconds if given else sa.literal(float(seconds), sa.Float))


def ago(seconds: float) -> sa.ScalarSelect[dt.datetime]:
    """Return the database's time ``seconds`` ago, to be compared with many rows' times.

    It is found once for a statement: PostgreSQL uses no index for what is compared with a clock that
    moves on.
    """
    return sa.select(utcnow(-seconds)).scalar_subquery()


@compiles(utcnow, "postgresql")
def _utcnow_postgresql(element: utcnow, compiler: SQLCompiler, **kw: Any) -> str:
    # clock_timestamp moves on within a transaction; now() would be its start.
    seconds = compiler.process(element.clauses, **kw)
    return f"(clock_timestamp() + make_interval(secs => {seconds}))"


@compiles(utcnow, "sqlite")
def _utcnow_sqlite(element: utcnow, compiler: SQLCompiler, **kw: Any) -> str:
    # The trailing zeros make it the format SQLAlchemy stores, so that texts compare as times.
    seconds = compiler.process(element.clauses, **kw)
    return f"(strftime('%Y-%m-%d %H:%M:%f', 'now', {seconds} || ' seconds') || '000')"
