"""How the store reads and writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs import db
from jobs.models import Attempt, Job, Worker


class Base:
    """The tables of one database, and its two kinds of transactions."""

    def __init__(self, url: str) -> None:
        self.engine = db.connect(url)
        self._reader = self.engine
        if self.engine.dialect.name == "postgresql":
            # A job and its attempts are read by two queries, which must see the same moment.
            self._reader = self.engine.execution_options(isolation_level="REPEATABLE READ")

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with Session(self._reader, expire_on_commit=False) as session, session.begin():
            db.begin(session.connection(), write=False)
            yield session

    @contextmanager
    def _read_rows(self) -> Iterator[sa.Connection]:
        with self._reader.begin() as connection:
            db.begin(connection, write=False)
            yield connection

    @contextmanager
    def _write(self) -> Iterator[sa.Connection]:
        # Rows and not objects: a worker's threads share one interpreter with its engine.
        with self.engine.begin() as connection:
            db.begin(connection, write=True)
            yield connection

    @contextmanager
    def _add(self) -> Iterator[Session]:
        with Session(self.engine, expire_on_commit=False) as session, session.begin():
            db.begin(session.connection(), write=True)
            yield session

    def close(self) -> None:
        self.engine.dispose()

    def check_writable(self) -> None:
        """Make sure that rows could be written, without writing any; raises what SQLAlchemy raises."""
        with self._write() as connection:
            for table in (Job, Attempt, Worker):
                connection.execute(sa.update(table).where(sa.false()).values(id=table.id))
