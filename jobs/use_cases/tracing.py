"""Tracing: a receiver of traces gets each job once the log has its end, and each review once the log has it.

Jobs and reviews are sent in the order of the log, in which reviews follow their job. Each receiver has a position in it.
One process sends at a time: it takes the receiver's row for as long as a reply may take. After a crash before the position
was moved, a job or a review may be sent twice, as the same span.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any, NamedTuple

import sqlalchemy as sa

from jobs import trace_context
from jobs.backoff import BACKOFF
from jobs.database import Database
from jobs.models import Job, LogKind
from jobs.statements import log, traces, whole_jobs
from jobs.use_cases.sealing import Describe

#: Entries that are looked at for one request.
MAX_ENTRIES = 50


class Sending(NamedTuple):
    """What a receiver is to be sent."""

    #: Of jobs that have ended; perhaps none.
    histories: Sequence[dict[str, Any]]
    #: Reviews with a rating: the history of the job, and the id of each.
    reviews: Sequence[tuple[dict[str, Any], str]]
    #: The place after them.
    end: int
    failures: int


def begin_sending(
    database: Database, receiver: str, describe: Describe, seconds: float
) -> Sending | None:
    """Return what a receiver is to be sent now; None if it has everything, or is not to be sent anything.

    A new receiver gets the jobs that end, and the reviews that are made, from now on.

    Args:
        database: of the jobs.
        receiver: SHA-256 of its address.
        describe: returns the history of a job.
        seconds: for how long nobody else sends.
    """
    with database.read() as connection:
        size = log.state(connection)[1]
        place = traces.find_place(connection, receiver)
    if place is not None and place >= size:
        return None
    with database.write() as connection:
        if place is None:
            traces.add(connection, receiver, size)
            return None
        row = traces.take(connection, receiver, seconds, BACKOFF.most)
    if row is None:
        return None
    end = min(row.next_index + MAX_ENTRIES, size)
    with database.read_session() as session:
        connection = session.connection()
        entries = log.list_entries(connection, row.next_index, end)
        # As many as may be in memory together; the others come next.
        parts = whole_jobs.parts(connection, [entry.job_id for entry in entries])
        if len(parts) > 1:
            entries = list(takewhile(lambda entry: entry.job_id in parts[0], entries))
            end = entries[-1].entry_index + 1
        sent = (LogKind.JOB, LogKind.REVIEW)
        jobs = whole_jobs.load(session, {e.job_id for e in entries if e.kind in sent})
    ended, reviews = _sampled(entries, jobs, describe)
    return Sending(ended, reviews, end, row.failures)


def _sampled(
    entries: Iterable[sa.Row[int, LogKind, str, bytes]], jobs: Mapping[str, Job], describe: Describe
) -> tuple[list[dict[str, Any]], list[tuple[dict[str, Any], str]]]:
    """Return what is to be sent of some entries, as in `Sending`: the histories, and the reviews.

    Args:
        entries: of the log.
        jobs: those of the entries that are not deleted, by their ids.
        describe: returns the history of a job.
    """
    histories = {job_id: describe(job) for job_id, job in jobs.items()}
    ended: list[dict[str, Any]] = []
    reviews: list[tuple[dict[str, Any], str]] = []
    for entry in entries:
        job = jobs.get(entry.job_id)
        # The caller decides for its trace whether anything of it is sent.
        if job is None or not trace_context.of_job(job.id, job.traceparent).is_sampled:
            continue
        # Of a job that was retried, the last end is sent.
        if entry.kind is LogKind.JOB and job.log_index == entry.entry_index:
            ended.append(histories[job.id])
        elif entry.kind is LogKind.REVIEW:
            reviews += [
                (histories[job.id], review.id)
                for review in job.reviews
                if review.log_index == entry.entry_index
                and (review.critique, review.regeneration) != (None, None)
            ]
    return ended, reviews


def note_sent(database: Database, receiver: str, end: int) -> None:
    """Note that a receiver has the jobs and reviews of all entries before ``end``."""
    with database.write() as connection:
        traces.update(connection, receiver, 0, next_index=end, failures=0)


def note_unsent(database: Database, receiver: str, failures: int) -> None:
    """Note that a receiver has not taken what was sent, for the ``failures``-th time in a row."""
    with database.write() as connection:
        traces.update(connection, receiver, BACKOFF.delay(failures), failures=failures)
