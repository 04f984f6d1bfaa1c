"""Statements on reviews. They are added, and never changed."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa

from jobs.models import Job, Review, Status
from jobs.statements.jobs import IndexedFilters
from jobs.statements.requests import Keyed

#: What a review needs to be counted.
_VERDICT = (
    Review.job_id,
    Review.number,
    Review.reviewer,
    Review.critique,
    Review.regeneration,
)
#: The owner of a review's job.
_OWNER = sa.select(Job.owner).where(Job.id == Review.job_id).scalar_subquery()


def count(connection: sa.Connection, job_id: str) -> int:
    """Return the number of a job's reviews."""
    query = sa.select(sa.func.count()).where(Review.job_id == job_id)
    return connection.scalar(query) or 0


def add(connection: sa.Connection, **columns: Any) -> None:
    """Add a review."""
    connection.execute(sa.insert(Review).values(**columns))


def find_made(
    connection: sa.Connection, request: Keyed | None, job_id: str, reviewer: str | None
) -> str | None:
    """Return the id of the review of a job that the same request added; None if there is none.

    Args:
        connection: in a transaction.
        request: the request; None if it has no idempotency key.
        job_id: of the job.
        reviewer: whose key it is; None where all clients are one.

    Raises:
        IdempotencyError: the key was used for a different request.
    """
    if request is None:
        return None
    query = sa.select(Review.id, Review.request_digest).where(
        Review.job_id == job_id, Review.idempotency_key == request.key
    )
    if reviewer is not None:
        query = query.where(Review.reviewer == reviewer)
    found = connection.execute(query).first()
    if found is None:
        return None
    review_id, digest = found
    request.check(digest)
    return review_id


def set_rating(connection: sa.Connection, job_id: str, rating: int) -> None:
    """Set the rating that a job is found by."""
    connection.execute(sa.update(Job).where(Job.id == job_id).values(rating=rating))


def recent_jobs(connection: sa.Connection, filters: IndexedFilters, limit: int) -> list[str]:
    """Return the ids of completed jobs that meet filters, the newest ``limit`` ones."""
    query = filters.select().with_only_columns(Job.id).where(Job.status == Status.COMPLETED)
    newest = query.order_by(Job.created_at.desc(), Job.id.desc()).limit(limit)
    return list(connection.scalars(newest))


def of_jobs(
    connection: sa.Connection, job_ids: Collection[str]
) -> list[sa.Row[str, int, str, int | None, int | None]]:
    """Return the verdicts on some jobs: job, number, reviewer and both ratings, the oldest first."""
    query = sa.select(*_VERDICT).where(Review.job_id.in_(list(job_ids)))
    return list(connection.execute(query.order_by(Review.job_id, Review.number)))


def recent(
    connection: sa.Connection, filters: IndexedFilters, limit: int
) -> list[sa.Row[str, int, str, int | None, int | None]]:
    """Return verdicts, the newest ``limit`` ones, newest first.

    Args:
        connection: in any transaction.
        filters: the owner is that of the jobs, and the times are those of the reviews.
        limit: the maximum number.
    """
    query = sa.select(*_VERDICT)
    if filters.owner is not None:
        # Not a join: an owner may have more jobs than there are reviews.
        query = query.where(_OWNER.in_([filters.owner]))
    if filters.since is not None:
        query = query.where(Review.created_at >= filters.since)
    if filters.until is not None:
        query = query.where(Review.created_at < filters.until)
    newest = query.order_by(Review.created_at.desc(), Review.id.desc()).limit(limit)
    return list(connection.execute(newest))
