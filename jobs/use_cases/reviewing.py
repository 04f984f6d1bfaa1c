"""Reviews: adding them, which jobs to review next, and how far reviewers agree.

The jobs of other owners are not found; the owner None stands for all owners. A person's last review of a job
is the one that counts.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import sqlalchemy as sa

from jobs.agreement import cohen_kappa, krippendorff_alpha
from jobs.column_types import utcnow
from jobs.database import Database
from jobs.errors import IdempotencyError, NotEndedError
from jobs.ids import new_id
from jobs.models import Job
from jobs.statements import documents, jobs, reviews
from jobs.tlog.salted import new_salt
from jobs.transient import retry_on_conflict

#: How many of the newest jobs the queue is sampled from, and how many reviews it and agreement look at.
WINDOW = 1000
MAX_REVIEWS = 100_000
#: What is rated.
RATINGS = ("critique", "regeneration")

Rating = Literal["critique", "regeneration"]
#: What is reviewed next: a sample, or what reviewers disagree on.
Kind = Literal["unreviewed", "disagreements"]


@dataclass(frozen=True)
class NewReview:
    """A person's verdict on a job."""

    #: -1, 0 or 1 each.
    critique: int | None = None
    regeneration: int | None = None
    corrected_answer: str | None = None
    tags: tuple[str, ...] = ()
    note: str | None = None


class Verdict(NamedTuple):
    """The ratings of a person's last review of a job."""

    critique: int | None
    regeneration: int | None


#: The verdicts that count, by job and reviewer.
Verdicts = dict[str, dict[str, Verdict]]


class Mark(NamedTuple):
    """A position in the order in which a person reviews jobs: the job after it is next."""

    job_id: str
    #: Whether others had reviewed it. Those that nobody reviewed come first.
    reviewed: bool


@dataclass(frozen=True)
class NextReview:
    """What a person reviews next, and how much that person has reviewed."""

    #: None if nothing follows.
    next: Mark | None
    #: The number of jobs from the next one on, it included, and of those that were skipped before it.
    left: int
    skipped: int
    #: Of the newest `WINDOW` completed jobs: how many there are, how many the person has reviewed, and how many
    #: anybody has. Of disagreements: how many there are, and how many of these the person has reviewed.
    jobs: int
    done: int
    done_by_anybody: int


class Agreement(NamedTuple):
    """How far reviewers agree in a rating."""

    #: ``cohen_kappa`` for two reviewers, ``krippendorff_alpha`` for more, None for fewer.
    measure: str | None
    #: None if it is not defined: there is no job that two have rated, or no rating differs from another.
    value: float | None
    #: The people who rated a job that another one rated too, and the number of these jobs.
    reviewers: list[str]
    jobs: int


@retry_on_conflict
def add(
    database: Database,
    owner: str | None,
    job_id: str,
    review: NewReview,
    *,
    reviewer: str,
    key_id: str | None = None,
    idempotency_key: str | None = None,
    request_digest: str | None = None,
) -> str:
    """Add a review of a job that has ended; return its id. The log gets an entry of it.

    If the idempotency key was used for the same request before, nothing is added, and that review is returned.

    Args:
        database: of the job.
        owner: of the job; None for any.
        job_id: of the job.
        review: the verdict.
        reviewer: whose it is.
        key_id: of the API key that it was sent with, if any.
        idempotency_key: the client's.
        request_digest: the SHA-256 of the request that came with it.

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
        if idempotency_key is not None:
            existing = reviews.find_by_idempotency_key(
                connection, job_id, idempotency_key, None if key_id is None else reviewer
            )
            if existing is not None:
                found_id, found_digest = existing
                if found_digest != request_digest:
                    raise IdempotencyError
                return found_id
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
            idempotency_key=idempotency_key,
            request_digest=request_digest,
            created_at=utcnow(),
            log_salt=new_salt(),
        )
        if review.regeneration is not None:
            reviews.set_rating(connection, job_id, review.regeneration)
        documents.reindex(connection, job_id)
    return review_id


def queue(
    database: Database,
    owner: str | None,
    *,
    reviewer: str,
    kind: Kind,
    seed: int,
    limit: int,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
) -> list[tuple[Job, dict[str, Verdict]]]:
    """Return jobs to review next, with the verdicts so far by reviewer.

    Args:
        database: of the jobs.
        owner: of the jobs; None for all.
        reviewer: who asks. Jobs that this person has reviewed are left out, unless reviewers disagree.
        kind: ``unreviewed``: a sample of the newest `WINDOW` completed jobs, those without a review first.
            ``disagreements``: those of the newest `MAX_REVIEWS` reviews' jobs whose reviewers disagree, those
            first that were reviewed last.
        seed: of the sample: the same seed orders the same jobs alike, whoever asks.
        limit: the maximum number of jobs.
        since, until: the jobs (for ``disagreements``: the reviews) were created from ``since`` on, and
            before ``until``.
    """
    with database.read_session() as session:
        connection, filters = session.connection(), jobs.IndexedFilters(owner, since, until)
        if kind == "disagreements":
            chosen, verdicts = _disagreements(connection, filters, MAX_REVIEWS)
        else:
            ids, verdicts = _sampled(connection, filters)
            left = [job_id for job_id in ids if reviewer not in verdicts.get(job_id, ())]
            chosen = sorted(left, key=lambda job_id: (job_id in verdicts, _rank(seed, job_id)))
        found = jobs.load(session, chosen[:limit])
    return [(job, verdicts.get(job_id, {})) for job_id, job in found.items()]


def next_review(
    database: Database,
    owner: str | None,
    *,
    reviewer: str,
    kind: Kind,
    seed: int,
    after: Mark | None = None,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
) -> NextReview:
    """Return what a person reviews next, in an order that reviews do not change: that of the sample.

    Args:
        database: of the jobs.
        owner: of the jobs; None for all.
        reviewer: who reviews. Jobs that this person has reviewed are left out, unless reviewers disagree.
        kind: as for `queue`; ``disagreements`` are those of the newest `WINDOW` reviews' jobs.
        seed: of the sample.
        after: the last job that was skipped, or of disagreements the last one that was seen.
        since, until: as for `queue`.
    """
    filters = jobs.IndexedFilters(owner, since, until)
    with database.read() as connection:
        if kind == "disagreements":
            ids, verdicts = _disagreements(connection, filters, WINDOW)
        else:
            ids, verdicts = _sampled(connection, filters)
    own = [job_id for job_id in ids if reviewer in verdicts.get(job_id, ())]
    left = ids if kind == "disagreements" else set(ids).difference(own)

    def place(mark: Mark) -> tuple[bool, bytes]:
        return mark.reviewed, _rank(seed, mark.job_id)

    # Disagreements have all been reviewed.
    marks = [Mark(job_id, kind == "unreviewed" and job_id in verdicts) for job_id in left]
    following = sorted((m for m in marks if after is None or place(m) > place(after)), key=place)
    return NextReview(
        next=following[0] if following else None,
        left=len(following),
        skipped=len(marks) - len(following),
        jobs=len(ids),
        done=len(own),
        done_by_anybody=sum(job_id in verdicts for job_id in ids),
    )


def agreement(
    database: Database,
    owner: str | None,
    *,
    since: dt.datetime | None = None,
    until: dt.datetime | None = None,
    limit: int = MAX_REVIEWS,
) -> dict[Rating, Agreement]:
    """Return how far reviewers agree, for each rating.

    Args:
        database: of the jobs.
        owner: of the jobs; None for all.
        since, until: the reviews were created from ``since`` on, and before ``until``.
        limit: of more reviews, the newest count.
    """
    with database.read() as connection:
        rows = reviews.recent(connection, jobs.IndexedFilters(owner, since, until), limit)
    verdicts = current(reversed(rows))
    return {"critique": _agreement(verdicts, 0), "regeneration": _agreement(verdicts, 1)}


def current(
    rows: Iterable[sa.Row[str, int, str, int | None, int | None]],
) -> Verdicts:
    """Return the verdicts that count, by job and reviewer.

    Args:
        rows: of reviews, the oldest first. Erased reviewers are left out: they may be the same person.
    """
    verdicts: Verdicts = {}
    for row in rows:
        if row.reviewer:
            verdicts.setdefault(row.job_id, {})[row.reviewer] = Verdict(
                row.critique, row.regeneration
            )
    return verdicts


def disagree(verdicts: dict[str, Verdict]) -> bool:
    """Return whether two reviewers of a job gave different ratings."""
    return any(
        len({verdict[index] for verdict in verdicts.values()} - {None}) > 1 for index in (0, 1)
    )


def _sampled(connection: sa.Connection, filters: jobs.IndexedFilters) -> tuple[list[str], Verdicts]:
    """Return the newest `WINDOW` completed jobs, and the verdicts on them."""
    ids = reviews.recent_jobs(connection, filters, WINDOW)
    return ids, current(reviews.of_jobs(connection, ids))


def _disagreements(
    connection: sa.Connection, filters: jobs.IndexedFilters, limit: int
) -> tuple[list[str], Verdicts]:
    """Return the jobs that reviewers disagree on, those first that were reviewed last, and all verdicts."""
    rows = reviews.recent(connection, filters, limit)
    order = list(dict.fromkeys(row.job_id for row in rows))
    verdicts = current(reversed(rows))
    return [job_id for job_id in order if disagree(verdicts.get(job_id, {}))], verdicts


def _rank(seed: int, job_id: str) -> bytes:
    """Return where a job is in the sample of a seed."""
    return hashlib.sha256(f"{seed} {job_id}".encode()).digest()


def _agreement(verdicts: Verdicts, index: int) -> Agreement:
    units: list[dict[str, int]] = []
    for by_reviewer in verdicts.values():
        ratings = {
            reviewer: rating
            for reviewer, verdict in by_reviewer.items()
            if (rating := verdict[index]) is not None
        }
        if len(ratings) > 1:
            units.append(ratings)
    reviewers = sorted({reviewer for unit in units for reviewer in unit})
    if len(reviewers) < 2:
        return Agreement(None, None, [], 0)
    if len(reviewers) == 2:
        first, second = reviewers
        value = cohen_kappa([(unit[first], unit[second]) for unit in units])
        return Agreement("cohen_kappa", value, reviewers, len(units))
    value = krippendorff_alpha([list(unit.values()) for unit in units])
    return Agreement("krippendorff_alpha", value, reviewers, len(units))
