"""Which jobs to review next: a sample, or those that reviewers disagree on.

The jobs of other owners are not found; the owner None stands for all owners.
"""

from __future__ import annotations

import datetime as dt
import hashlib
from dataclasses import dataclass
from typing import Literal, NamedTuple

import sqlalchemy as sa

from jobs.database import Database
from jobs.models import Job
from jobs.statements import jobs, reviews
from jobs.use_cases.verdicts import MAX_REVIEWS, Verdict, Verdicts, current, disagree

#: How many of the newest jobs the queue is sampled from.
WINDOW = 1000

#: What is reviewed next: a sample, or what reviewers disagree on.
Kind = Literal["unreviewed", "disagreements"]


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
