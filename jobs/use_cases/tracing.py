"""Tracing: a receiver of traces gets each job once the log has its end.

The log is the order: a receiver has a place in it, and gets the jobs of the entries from there on. One process sends at a
time: it takes the receiver's row for as long as a reply may take. A job may be sent twice, as after a crash before
the place was moved, and is the same trace then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import sqlalchemy as sa

from jobs.database import Database
from jobs.models import Job, LogKind
from jobs.statements import log, traces

#: Entries that are looked at for one request.
MAX_ENTRIES = 50
#: Seconds after a failure before it is tried again: doubled with each failure in a row.
MIN_DELAY, MAX_DELAY = 2.0, 300.0


class Sending(NamedTuple):
    """What a receiver is to be sent."""

    #: Of jobs that have ended; perhaps none.
    histories: Sequence[dict[str, Any]]
    #: The place after them.
    end: int
    failures: int


def begin_sending(
    database: Database, receiver: str, describe: Callable[[Job], dict[str, Any]], seconds: float
) -> Sending | None:
    """Return what a receiver is to be sent now; None if it has everything, or is not to be sent anything.

    A new receiver gets the jobs that end from now on.

    Args:
        database: of the jobs.
        receiver: SHA-256 of its address.
        describe: returns the history of a job (`jobs.protocol.history`).
        seconds: for how long nobody else sends.
    """
    with database.read() as connection:
        size = log.state(connection)[1]
        place = traces.find_place(connection, receiver)
    if place is None:
        try:
            with database.write() as connection:
                traces.add(connection, receiver, size)
        except sa.exc.IntegrityError:
            pass  # Another process added it at the same time.
        return None
    if place >= size:
        return None
    with database.write() as connection:
        row = traces.take(connection, receiver, seconds)
    if row is None:
        return None
    end = min(row.next_index + MAX_ENTRIES, size)
    with database.read_session() as session:
        entries = log.list_entries(session.connection(), row.next_index, end)
        ended = {e.job_id: e.entry_index for e in entries if e.kind is LogKind.JOB}
        jobs = log.load_jobs(session, ended)
    # Of a job that was retried, the last end is told.
    told = [describe(jobs[i]) for i, at in ended.items() if i in jobs and jobs[i].log_index == at]
    return Sending(told, end, row.failures)


def note_sent(database: Database, receiver: str, end: int) -> None:
    """Note that a receiver has the jobs of all entries before ``end``."""
    with database.write() as connection:
        traces.update(connection, receiver, 0, next_index=end, failures=0)


def note_unsent(database: Database, receiver: str, failures: int) -> None:
    """Note that a receiver has not taken what was sent, for the ``failures``-th time in a row."""
    delay = min(MIN_DELAY * 2 ** min(failures - 1, 16), MAX_DELAY)
    with database.write() as connection:
        traces.update(connection, receiver, delay, failures=failures)
