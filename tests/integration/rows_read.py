"""Counts what a database reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sqlalchemy as sa

from jobs.database import Database


@contextmanager
def counting(database: Database) -> Iterator[Callable[[], int]]:
    """Count the rows that the database reads: the yielded function returns the number since its last call."""
    if database.engine.dialect.name == "sqlite":
        steps = 0

        def step() -> int:
            nonlocal steps
            steps += 1
            return 0

        def watch(connection: Any, *_: Any) -> None:
            connection.set_progress_handler(step, 10)

        sa.event.listen(database.engine, "checkout", watch)
        last = 0

        def rows_read() -> int:
            nonlocal last
            now, before, last = steps, last, steps
            return now - before

        yield rows_read
        sa.event.remove(database.engine, "checkout", watch)
        return

    before = 0

    def read() -> int:
        nonlocal before
        with database.engine.connect() as connection:  # the only one that there is in the pool
            connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
            connection.commit()
            total = connection.exec_driver_sql(
                "SELECT (SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))"
                " FROM pg_stat_user_tables)"
                " + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes)"
            ).scalar_one()
            connection.rollback()
        now, before_, before = int(total), before, int(total)
        return now - before_

    yield read
