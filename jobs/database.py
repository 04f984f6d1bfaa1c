"""Units of work on the database.

A use case opens one unit of work, does all that belongs together in it, and commits it by leaving the
block::

    with database.write() as connection:
        leases.claim(connection, …)
        attempts.add(connection, …)
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.combining import Combiner
from jobs.database_engine import SQLITE_BUSY_TIMEOUT, begin, create_engine, without_sync
from jobs.models import Base

T = TypeVar("T")


class _WriterLock:
    """Held by the thread that writes to SQLite. The other threads of the process wait for it instead of polling."""

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        if not self._lock.acquire(timeout=SQLITE_BUSY_TIMEOUT):
            raise sa.exc.TimeoutError(
                f"another thread has been writing for {SQLITE_BUSY_TIMEOUT:g} seconds"
            )

    def __exit__(self, *_: object) -> None:
        self._lock.release()


class Database:
    """One database. Threads may share it; forked processes may not."""

    def __init__(self, url: str) -> None:
        """
        Args:
            url: as `jobs.database_url.checked` returns it. Nothing connects before the first use.
        """
        self.engine = create_engine(url)
        self._reader = self._autocommit = self.engine
        self._lookups: dict[Callable[..., Any], Combiner[str, Any]] = {}
        self._writing: AbstractContextManager[object] = nullcontext()
        if self.engine.dialect.name == "sqlite":
            self._writing = _WriterLock()
        if self.engine.dialect.name == "postgresql":
            # Several queries of one unit of work must see the same snapshot.
            self._reader = self.engine.execution_options(isolation_level="REPEATABLE READ")
            self._autocommit = create_engine(url, autocommit=True)

    @contextmanager
    def read(self) -> Iterator[sa.Connection]:
        """Begin a read-only unit of work. All its queries see the same snapshot."""
        with self._reader.begin() as connection:
            begin(connection, write=False)
            yield connection

    def query(self, run: Callable[[sa.Connection], T]) -> T:
        """Run one query in autocommit, without a transaction; return what ``run`` returns.

        In PostgreSQL it takes half the time of `read`, because nothing but the query goes to the server.
        """
        try:
            with self._autocommit.connect() as connection:
                return run(connection)
        except sa.exc.DBAPIError as error:
            if not error.connection_invalidated:
                raise
        with self._autocommit.connect() as connection:  # The server had closed it.
            return run(connection)

    def look_up(
        self, fetch: Callable[[sa.Connection, list[str]], Mapping[str, T]], key: str
    ) -> T | None:
        """Return what a query finds for a key, or None. Threads that look up keys at the same time share a query.

        Args:
            fetch: a function of a module; it runs the query for some keys.
            key: to look up.
        """
        lookups = self._lookups.get(fetch)
        if lookups is None:
            made: Combiner[str, Any] = Combiner(lambda keys: self._fetch(fetch, keys))
            lookups = self._lookups.setdefault(fetch, made)
        found: T | None = lookups.do(key)
        return found

    def _fetch(
        self, fetch: Callable[[sa.Connection, list[str]], Mapping[str, T]], keys: list[str]
    ) -> list[T | None]:
        different = list(dict.fromkeys(keys))
        found = self.query(lambda connection: fetch(connection, different))
        return [found.get(key) for key in keys]

    @contextmanager
    def write(self, *, durable: bool = True) -> Iterator[sa.Connection]:
        """Begin a unit of work that writes. Leaving the block commits it; an exception rolls it back.

        Args:
            durable: whether the commit waits for the disk. What does not need to is done again after a power
                failure, and other writers do not wait for it.
        """
        with (
            self._writing,
            self.engine.connect() as connection,
            nullcontext() if durable else without_sync(connection),
            connection.begin(),
        ):
            begin(connection, write=True)
            if not durable and connection.dialect.name == "postgresql":
                connection.exec_driver_sql("SET LOCAL synchronous_commit = off")
            yield connection

    @contextmanager
    def read_session(self, *, is_long: bool = False) -> Iterator[Session]:
        """Do the same as `read` for mapped objects, which stay usable afterwards.

        Workers use connections instead: a worker's threads share the interpreter with its engine, and
        objects cost more time than rows.

        Args:
            is_long: whether much may be computed between two queries. PostgreSQL would end the transaction as one
                whose process hangs, but nobody waits for the locks of one that only reads.
        """
        with Session(self._reader, expire_on_commit=False) as session, session.begin():
            connection = session.connection()
            begin(connection, write=False)
            if is_long and connection.dialect.name == "postgresql":
                connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
            yield session

    @contextmanager
    def write_session(self) -> Iterator[Session]:
        """Do the same as `write` for mapped objects, which stay usable afterwards."""
        with (
            self._writing,
            Session(self.engine, expire_on_commit=False) as session,
            session.begin(),
        ):
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

    def checkpoint_wal(self) -> None:
        """Copy what is new in SQLite's write-ahead log into the database file, while others read and write.

        Otherwise the writer that makes the log too long does so, for up to a tenth of a second.
        """
        if self.engine.dialect.name == "sqlite":
            with self.engine.connect() as connection:
                connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()
        self._autocommit.dispose()
