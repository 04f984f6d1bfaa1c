"""Statements that put jobs into the search index, as its documents.

A document's id begins with its job's time of creation, so that SQLite's FTS5 finds documents in the order of
jobs. PostgreSQL's GIN cannot: it finds all documents of a term before it returns the first. So it has terms
of time too, for periods of several lengths (`jobs.statements.search_periods`).
"""

from __future__ import annotations

import datetime as dt
import re
import sqlite3
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session, selectinload, undefer

from jobs.models import Attempt, Job, SearchDocument
from jobs.statements.inserting import insert
from jobs.statements.rollups import Change
from jobs.times import from_microseconds, microseconds

#: The condition of the partial index of jobs that the search index does not have as they are, or that are not counted.
_IS_UNINDEXED = sa.and_(
    Job.finished_at.is_not(None),
    Job.worker_id.is_(None),
    sa.or_(Job.unindexed > sa.literal_column("0"), Job.counted.is_(None)),
)
#: Ordered as the index is. Otherwise PostgreSQL, which may overestimate the index's size, may not use it.
_ANY_UNINDEXED = sa.select(sa.literal(1)).where(_IS_UNINDEXED).order_by(Job.finished_at).limit(1)
_TAKE = (
    sa.update(Job)
    .where(
        Job.id == sa.bindparam("job"),
        Job.unindexed >= sa.bindparam("changes"),
        # It was not retried, and what it counts for is still what was read.
        Job.finished_at.is_not(None),
        Job.counted.is_not_distinct_from(sa.bindparam("before")),
    )
    .values(unindexed=Job.unindexed - sa.bindparam("changes"), counted=sa.bindparam("after"))
)

#: Bits of a document's id after the microseconds of its job's time.
TIE_BITS = 11
#: The maximum id.
LAST_ID = 2**63 - 1
#: The lengths of periods: powers of two of a microsecond, from a minute to half a year.
PERIODS = tuple(range(26, 46, 2))
#: Pages that SQLite merges in one transaction, in less than a millisecond.
_MERGED_PAGES = 4
_MERGE = sa.text(
    f"INSERT INTO search_index(search_index, rank) VALUES ('merge', {_MERGED_PAGES})"  # noqa: S608 (a number)
)


class NewDocument(NamedTuple):
    """The search document of a job, and what the statistics count for it, ready to be stored."""

    job_id: str
    created_at: dt.datetime
    #: `Job.unindexed` when the job was read.
    changes: int
    #: The columns of `SearchDocument` but its ids and terms.
    columns: dict[str, Any]
    terms: list[str]
    #: What the job counts for in the statistics from now on, and did until now (`jobs.statements.rollups`).
    counted: Change
    #: The description of its model, by the model.
    models: dict[str, dict[str, Any]]


def reindex(connection: sa.Connection, job_id: str, *, forget: bool = False) -> None:
    """Have a job indexed again, since something that is searched has changed: within seconds, by the duty.

    Args:
        connection: of the transaction that changes it.
        job_id: of the job.
        forget: whether it is not to be found until then, as when a text is erased.
    """
    changed = sa.update(Job).where(Job.id == job_id).values(unindexed=Job.unindexed + 1)
    connection.execute(changed)
    if forget:
        connection.execute(sa.delete(SearchDocument).where(SearchDocument.job_id == job_id))


def any_unindexed(connection: sa.Connection) -> bool:
    """Return whether the index lacks a job that has ended, or a change of one, or whether one is not counted."""
    return connection.scalar(_ANY_UNINDEXED) is not None


def load_unindexed(session: Session, limit: int) -> list[Job]:
    """Return jobs that the index does not have as they are, those that ended first, with attempts and reviews."""
    attempts = selectinload(Job.attempts)
    query = (
        sa.select(Job)
        .where(_IS_UNINDEXED)
        .order_by(Job.finished_at)
        .limit(limit)
        .options(
            undefer(Job.counted),
            attempts.load_only(
                Attempt.job_id,
                Attempt.stage_index,
                Attempt.role,
                Attempt.run,
                Attempt.status,
                Attempt.output,
                Attempt.prompt_tokens,
                Attempt.output_tokens,
                Attempt.started_at,
                Attempt.first_token_at,
                Attempt.finished_at,
            ),
            attempts.selectinload(Attempt.worker),
            selectinload(Job.reviews),
        )
    )
    return list(session.scalars(query))


def put(connection: sa.Connection, new: NewDocument) -> bool:
    """Put a job into the index, in the place of what the index has of it.

    Returns:
        False if another process did, or the job is gone.
    """
    values = {"before": new.counted.before, "after": new.counted.after}
    taken = connection.execute(_TAKE, {"job": new.job_id, "changes": new.changes, **values})
    if not taken.rowcount:
        return False
    old = sa.delete(SearchDocument).where(SearchDocument.job_id == new.job_id)
    document_id = connection.scalar(old.returning(SearchDocument.id))
    if document_id is None:
        document_id = first_id(new.created_at) + tie(new.job_id)
    # Nothing is inserted if the id is taken.
    new_document = (
        insert(connection, SearchDocument)
        .on_conflict_do_nothing(index_elements=["id"])
        .returning(SearchDocument.id)
    )
    while True:
        terms = new.terms
        if connection.dialect.name == "postgresql":
            terms = [*terms, *_period_terms(document_id)]
        row = {
            **new.columns,
            "id": document_id,
            "job_id": new.job_id,
            "terms": " ".join(terms),
        }
        if connection.scalar(new_document, row) is not None:
            return True
        document_id += 1  # Another job of the same moment has this id.


def merge_some(connection: sa.Connection) -> bool:
    """Merge a few pages of SQLite's index: a search reads each of its segments.

    Returns:
        whether there may be more to merge.
    """
    driver: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]  # it is of SQLite
    before = driver.total_changes
    connection.execute(_MERGE)
    return driver.total_changes - before > 1  # The statement itself counts as one.


def first_id(moment: dt.datetime) -> int:
    """Return the lowest id of documents whose jobs were created at a time or later."""
    return min(max(microseconds(moment), 0) << TIE_BITS, LAST_ID)


def moment(document_id: int) -> dt.datetime:
    """Return when the job of a document was created: the reverse of `first_id`."""
    return from_microseconds(document_id >> TIE_BITS)


def tie(job_id: str) -> int:
    """Return the low bits of a document's id, which order the jobs of one microsecond, mostly as their ids do."""
    match = re.fullmatch(r"resp_[0-9a-f]{12}([0-9a-f]{3})[0-9a-f]{17}", job_id)
    return int(match[1], 16) >> 1 if match else 0


def _period_terms(document_id: int) -> list[str]:
    return [period_term(level, document_id) for level in range(len(PERIODS))]


def period_term(level: int, document_id: int) -> str:
    bits = PERIODS[level]
    return f"_t{bits}_{document_id >> (TIE_BITS + bits):x}"
