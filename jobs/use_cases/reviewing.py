"""Adding reviews. The log gets an entry of each."""

from __future__ import annotations

from dataclasses import dataclass

from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.errors import NotEndedError
from jobs.ids import new_id
from jobs.statements import documents, jobs, requests, reviews
from jobs.statements.requests import Keyed
from jobs.tlog.salted import new_salt
from jobs.transient import retry_on_conflict

#: What is rated.
RATINGS = ("critique", "regeneration")


@dataclass(frozen=True)
class NewReview:
    """A person's verdict on a job."""

    #: -1, 0 or 1 each.
    critique: int | None = None
    regeneration: int | None = None
    corrected_answer: str | None = None
    tags: tuple[str, ...] = ()
    note: str | None = None


@retry_on_conflict
def add(
    database: Database,
    owner: str | None,
    job_id: str,
    review: NewReview,
    *,
    reviewer: str,
    key_id: str | None = None,
    keyed: Keyed | None = None,
) -> str:
    """Add a review of a job that has ended; return its id. The log gets an entry of it.

    If the same request was done before, nothing is added, and its review is returned.

    Args:
        database: of the job.
        owner: of the job; None for any.
        job_id: of the job.
        review: the verdict.
        reviewer: whose it is.
        key_id: of the API key that it was sent with, if any.
        keyed: the request, if it has an idempotency key.

    Raises:
        JobNotFoundError: the owner has no such job.
        NotEndedError: the job has not ended.
        IdempotencyError: the idempotency key was used for a different request.
    """
    review_id = new_id("rev_")
    with database.write() as connection:
        job = jobs.lock(connection, owner, job_id)
        if not job.status.final:
            raise NotEndedError(job_id)
        earlier = reviews.find_made(connection, keyed, job_id, None if key_id is None else reviewer)
        if earlier is not None:
            return earlier
        reviews.add(
            connection,
            id=review_id,
            job_id=job_id,
            number=reviews.count(connection, job_id),
            reviewer=reviewer,
            key_id=key_id,
            critique=review.critique,
            regeneration=review.regeneration,
            corrected_answer=review.corrected_answer,
            tags=list(review.tags),
            note=review.note,
            **requests.columns(keyed),
            created_at=utcnow(),
            log_salt=new_salt(),
        )
        if review.regeneration is not None:
            reviews.set_rating(connection, job_id, review.regeneration)
        documents.reindex(connection, job_id)
    return review_id
