"""The database: its engine, and units of work on it.

A use case opens one unit of work, does all that belongs together in it, and commits it by leaving the
block::

    with database.write() as connection:
        leases.claim(connection, …)
        attempts.add(connection, …)
"""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs import database_url
from jobs.models import Base

#: Seconds to wait for another writer, if a SQLite URL does not set ``timeout``.
SQLITE_BUSY_TIMEOUT = 30.0
#: Defaults for the options of a PostgreSQL URL. The timeouts (``tcp_user_timeout`` in milliseconds, all
#: others in seconds) are shorter than a lease, so that a dead network is noticed before it expires.
POSTGRESQL_DEFAULTS = {
    "connect_timeout": 5,
    "tcp_user_timeout": 10_000,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "fallback_application_name": "helixq",
}
#: The maximum number of connections of a process.
POOL_SIZE = 10
#: SQLSTATE of a write in a read-only transaction, as on a standby.
READ_ONLY = "25006"


class Database:
    """One database. Threads may share it; forked processes may not."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: as `jobs.database_url.checked` returns it. Nothing connects before the first use.
        """
        self.engine = create_engine(url)
        self._reader = self.engine
        if self.engine.dialect.name == "postgresql":
            # Several queries of one unit of work must see the same snapshot.
            self._reader = self.engine.execution_options(isolation_level="REPEATABLE READ")

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Begin a read-only unit of work. All its queries see the same snapshot."""
        with self._reader.begin() as connection:
            begin(connection, write=False)
            yield connection

    @contextmanager
    def write(self) -> Iterator[sa.Connection]:
        """Begin a unit of work that writes. Leaving the block commits it; an exception rolls it back."""
        with self.engine.begin() as connection:
            begin(connection, write=True)
            yield connection

    @contextmanager
    def read_session(self) -> Iterator[Session]:
        """Do the same as `read` for mapped objects, which stay usable afterwards.

        Workers use connections instead: a worker's threads share the interpreter with its engine, and
        objects cost more time than rows.
        """
        with Session(self._reader, expire_on_commit=False) as session, session.begin():
            begin(session.connection(), write=False)
            yield session

    @contextmanager
    def write_session(self) -> Iterator[Session]:
        """Do the same as `write` for mapped objects, which stay usable afterwards."""
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            begin(session.connection(), write=True)
            yield session

    def check_writable(self) -> None:
        """Check that all tables can be written, without writing a row.

        Raises:
            sqlalchemy.exc.SQLAlchemyError: they cannot.
        """
        with self.write() as connection:
            for table in Base.metadata.sorted_tables:
                key = next(iter(table.primary_key))
                connection.execute(sa.update(table).where(sa.false()).values({key: key}))

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def create_engine(url: str) -> sa.Engine:
    """Return the engine for a URL.

    Its connections keep no state in PostgreSQL beyond a transaction, prepared statements included
    (unless the URL asks for them): a pooler such as PgBouncer in transaction mode may give each
    transaction another server connection.
    """
    # A thread holds at most one connection, and none while it waits or computes: threads beyond the pool
    # size wait only briefly. LIFO reuses the connection whose caches are warm.
    pool: dict[str, Any] = {"pool_size": POOL_SIZE, "max_overflow": 0, "pool_use_lifo": True}
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        options = {
            **{key: value for key, value in POSTGRESQL_DEFAULTS.items() if key not in parsed.query},
            "prepare_threshold": database_url.prepare_threshold(parsed),
            # Whatever the role, the database or the environment says: texts are Unicode.
            "client_encoding": "UTF8",
            "cursor_factory": _binary_cursor(),
        }
        engine = sa.create_engine(
            parsed,
            pool_pre_ping=True,
            connect_args=options,
            # Whatever the default of the server, the database or the role is.
            isolation_level="READ COMMITTED",
            **pool,
        )
        sa.event.listen(engine, "handle_error", _disconnect_from_standby)
        return engine
    timeout = float(str(parsed.query.get("timeout", SQLITE_BUSY_TIMEOUT)))
    engine = sa.create_engine(parsed, connect_args={"timeout": timeout}, **pool)

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # The driver must not begin transactions by itself: `begin` does.
        connection.isolation_level = None
        # Readers do not block the writer, nor the writer them.
        _enable_wal(connection, timeout)
        # Every commit reaches the disk: an accepted job survives a power failure.
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")

    _check_file_identity(engine)
    return engine


def _check_file_identity(engine: sa.Engine) -> None:
    """Check at each checkout that a connection's SQLite file was not deleted or replaced.

    The operating system would allow writing to it, and what was written would be lost with the process.
    """
    file = Path(str(engine.url.database))
    connected = threading.Event()

    def identity() -> tuple[int, int]:
        try:
            stat = file.stat()
        except FileNotFoundError:
            raise sqlite3.OperationalError(f"the file {file} was deleted") from None
        return stat.st_dev, stat.st_ino

    @sa.event.listens_for(engine, "do_connect")
    def _create_no_second_file(*_: Any) -> None:
        if connected.is_set():
            identity()

    @sa.event.listens_for(engine, "connect")
    def _remember(_connection: Any, record: Any) -> None:
        record.info["file"] = identity()
        connected.set()

    @sa.event.listens_for(engine, "checkout")
    def _compare(_connection: Any, record: Any, _proxy: Any) -> None:
        if identity() != record.info["file"]:
            raise sa.exc.DisconnectionError("the file was replaced")


def begin(connection: sa.Connection, *, write: bool) -> None:
    """Begin a transaction in SQLite, whose driver does not when SQLAlchemy begins one.

    A SQLite transaction that reads first and writes later fails at once if another writer came between.
    One that takes the write lock first waits for it.

    This is a call and not a listener: with a single listener on an engine, SQLAlchemy dispatches all
    kinds of events for each statement, which costs a tenth of a claim's time.

    Args:
        connection: of an engine that `create_engine` returned.
        write: whether the transaction will write.
    """
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def _binary_cursor() -> type[Any]:
    """Return a class of psycopg cursors that request values in binary.

    In text, settings of the server, the database or the role decide the format of times, numbers and
    bytes, and how many digits arrive (``DateStyle``, ``extra_float_digits``, ``bytea_output``), and a pooler
    need not keep what a client sets.
    """
    # Imported here because it takes a while, and SQLite does not need it.
    import psycopg

    class BinaryCursor(psycopg.Cursor[Any]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            self.format = psycopg.pq.Format.BINARY

    return BinaryCursor


def _disconnect_from_standby(context: sa.ExceptionContext) -> None:
    """Drop a connection that cannot write: after a failover, a new one reaches the primary."""
    if getattr(context.original_exception, "sqlstate", None) == READ_ONLY:
        context.is_disconnect = True


def _enable_wal(connection: sqlite3.Connection, timeout: float) -> None:
    """Switch a database to its write-ahead log.

    If several processes open a new database at once, some get SQLITE_BUSY: SQLite's own busy timeout
    does not cover this lock. So wait up to ``timeout`` seconds here.
    """
    deadline = time.monotonic() + timeout
    while True:
        try:
            [mode] = connection.execute("PRAGMA journal_mode=WAL").fetchone()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.01)  # SQLite cannot notify when the lock is free.
        else:
            break
    if mode != "wal":
        raise sqlite3.OperationalError(
            "its file system, perhaps a network's, does not support a write-ahead log"
        )
