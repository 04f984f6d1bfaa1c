"""Engines of SQLAlchemy for SQLite and PostgreSQL: how their connections are made, and how transactions begin."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from jobs import database_url
from jobs.timing import HEARTBEAT_INTERVAL, LEASE

#: Seconds to wait for another writer, if a SQLite URL does not set ``timeout``.
SQLITE_BUSY_TIMEOUT = 30.0
#: Pages of SQLite's write-ahead log that make a writer copy them into the database file, which `Database.checkpoint_wal`
#: does earlier: 16 MiB, four times SQLite's default.
SQLITE_MAX_WAL_PAGES = 4000
#: Seconds between two checks whether another process has finished writing to SQLite.
LOCK_POLL_INTERVAL = 0.0005
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
#: The same for a URL with several hosts, of which only one is the primary: a standby could not be written, and may lag
#: behind it.
SEVERAL_HOSTS_DEFAULTS = {"target_session_attrs": "read-write"}
#: The maximum number of connections of a process: for units of work, for single queries, and of both.
POOL_SIZE = 8
AUTOCOMMIT_POOL_SIZE = 2
MAX_CONNECTIONS = POOL_SIZE + AUTOCOMMIT_POOL_SIZE
#: Seconds after which PostgreSQL ends a transaction whose process hangs or whose host is gone: it would hold its locks
#: for hours. A worker that has waited for them has time left to renew its leases.
IDLE_TRANSACTION_TIMEOUT = LEASE - HEARTBEAT_INTERVAL - 2
#: SQLSTATE of a write in a read-only transaction, as on a standby.
READ_ONLY = "25006"


def create_engine(url: str, *, autocommit: bool = False) -> sa.Engine:
    """Return the engine for a URL.

    Its connections rely on no state in PostgreSQL beyond a transaction, prepared statements included
    (unless the URL asks for them): a pooler such as PgBouncer in transaction mode may give each
    transaction another server connection.
    """
    # A thread holds at most one connection, and none while it waits or computes: threads beyond the pool
    # size wait only briefly. LIFO reuses the connection whose caches are warm.
    size = AUTOCOMMIT_POOL_SIZE if autocommit else POOL_SIZE
    pool: dict[str, Any] = {"pool_size": size, "max_overflow": 0, "pool_use_lifo": True}
    parsed = sa.make_url(url)
    if parsed.get_backend_name() != "sqlite":
        defaults = POSTGRESQL_DEFAULTS | (
            SEVERAL_HOSTS_DEFAULTS if database_url.has_several_hosts(parsed) else {}
        )
        options = {
            **{key: value for key, value in defaults.items() if key not in parsed.query},
            "prepare_threshold": database_url.prepare_threshold(parsed),
            # Whatever the role, the database or the environment says: texts are Unicode.
            "client_encoding": "UTF8",
            "cursor_factory": _binary_cursor(),
        }
        engine = sa.create_engine(
            parsed,
            pool_pre_ping=not autocommit,
            connect_args=options,
            # Whatever the default of the server, the database or the role is.
            isolation_level="AUTOCOMMIT" if autocommit else "READ COMMITTED",
            hide_parameters=True,  # Errors are logged, and the parameters are people's texts.
            **pool,
        )
        sa.event.listen(engine, "connect", _limit_idle_transactions)
        sa.event.listen(engine, "handle_error", _disconnect_from_standby)
        sa.event.listen(engine, "handle_error", _remove_values)
        return engine
    timeout = float(str(parsed.query.get("timeout", SQLITE_BUSY_TIMEOUT)))
    engine = sa.create_engine(
        parsed, connect_args={"timeout": timeout}, hide_parameters=True, **pool
    )

    @sa.event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # The driver must not begin transactions by itself: `begin` does.
        connection.isolation_level = None
        # Readers do not block the writer, nor the writer them.
        _enable_wal(connection, timeout)
        # Every commit reaches the disk: an accepted job survives a power failure.
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute(f"PRAGMA wal_autocheckpoint={SQLITE_MAX_WAL_PAGES}")

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
        if write:
            _wait_for_write_lock(connection)
        else:
            connection.exec_driver_sql("BEGIN")


@contextmanager
def without_sync(connection: sa.Connection) -> Iterator[None]:
    """Commit to SQLite's write-ahead log without waiting for the disk. The next commit that does waits for all."""
    if connection.dialect.name != "sqlite":
        yield
        return
    sqlite: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]  # it is of SQLite
    sqlite.execute("PRAGMA synchronous=NORMAL")
    try:
        yield
    finally:
        try:
            sqlite.execute("PRAGMA synchronous=FULL")
        except sqlite3.Error:
            connection.invalidate()  # Nobody else may get it as it is.


def _wait_for_write_lock(connection: sa.Connection) -> None:
    """Begin a transaction that writes to SQLite.

    SQLite itself polls less and less often, down to ten times a second, and so may miss every moment at which
    a busy database is free.
    """
    sqlite: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]  # it is of SQLite
    [timeout] = sqlite.execute("PRAGMA busy_timeout").fetchone()
    deadline = time.monotonic() + timeout / 1000
    sqlite.execute("PRAGMA busy_timeout=0")
    try:
        while time.monotonic() < deadline:
            try:
                sqlite.execute("BEGIN IMMEDIATE")
                return
            except sqlite3.OperationalError as error:
                if not _is_busy(error):
                    break
                time.sleep(LOCK_POLL_INTERVAL)  # SQLite cannot notify when the lock is free.
        connection.exec_driver_sql("BEGIN IMMEDIATE")  # This raises what SQLAlchemy's users expect.
    finally:
        sqlite.execute(f"PRAGMA busy_timeout={timeout}")


def _is_busy(error: sqlite3.Error) -> bool:
    return error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_BUSY


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


def _remove_values(context: sa.engine.ExceptionContext) -> None:
    """Keep only the first line of PostgreSQL's errors: the other lines show values of the row."""
    for error in (context.original_exception, context.sqlalchemy_exception):
        if error is not None and error.args and isinstance(error.args[0], str):
            error.args = (error.args[0].partition("\n")[0], *error.args[1:])


def _limit_idle_transactions(connection: Any, _record: Any) -> None:
    """Set `IDLE_TRANSACTION_TIMEOUT`, unless the server, the database, the role or the URL has set a timeout."""
    name = "idle_in_transaction_session_timeout"
    is_autocommit = connection.autocommit
    connection.autocommit = True
    connection.execute(
        "SELECT set_config(%s, %s, false) WHERE current_setting(%s) = '0'",
        [name, f"{IDLE_TRANSACTION_TIMEOUT:g}s", name],
    )
    connection.autocommit = is_autocommit


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
