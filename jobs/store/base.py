"""How the store reads and writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs import db


class Base:
    """The tables of one database, and its two kinds of transactions."""

    def __init__(self, url: str) -> None:
        self.engine = db.connect(url)
        self._reader = self.engine
        if self.engine.dialect.name == "postgresql":
            # A job and its attempts are read by two queries, which must see the same moment.
            self._reader = self.engine.execution_options(isolation_level="REPEATABLE READ")
        self._writer = self.engine.execution_options(helixq_write=True)

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with Session(self._reader, expire_on_commit=False) as session, session.begin():
            yield session

    def _read_rows(self) -> AbstractContextManager[sa.Connection]:
        return self._reader.begin()

    def _write(self) -> AbstractContextManager[sa.Connection]:
        # Rows and not objects: a worker's threads share one interpreter with its engine.
        return self._writer.begin()

    @contextmanager
    def _add(self) -> Iterator[Session]:
        with Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        self.engine.dispose()

    def ping(self) -> None:
        """Ask the database for a sign of life; raises what SQLAlchemy raises."""
        with self._read_rows() as connection:
            connection.execute(sa.select(sa.literal(1)))
