"""What the web does: it accepts, reads and cancels jobs."""

from __future__ import annotations

import re
import secrets
import time
from dataclasses import dataclass
from typing import NamedTuple

import sqlalchemy as sa
from sqlalchemy.orm import Session, selectinload

from jobs import db
from jobs.db import utcnow
from jobs.models import ANONYMOUS, OPEN, Attempt, Job, Status
from jobs.pipeline import Sampling
from jobs.store import statements
from jobs.store.base import Base
from jobs.store.statements import IS_QUEUED
from jobs.transient import repeated


class JobNotFoundError(Exception):
    """There is no job with this id."""


class QueueFullError(Exception):
    """As many jobs as `HELIXQ_MAX_QUEUED` allows are waiting already."""


class IdempotencyError(Exception):
    """The idempotency key was used before, with another request."""


@dataclass(frozen=True)
class NewJob:
    """A question as it was accepted."""

    question: str
    system: str
    sampling: Sampling
    rounds: int
    priority: int
    background: bool
    metadata: dict[str, str]
    idempotency_key: str | None = None
    request_digest: str | None = None


class Standing(NamedTuple):
    """How far a job is. While it is the same, the job has no other stages and no other end."""

    status: Status
    run: int
    stage_index: int
    lease_token: int


def new_id() -> str:
    """Make a job id: 48 bits of time, so that ids sort by age, and 80 random bits."""
    return f"resp_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def _check_id(job_id: str) -> None:
    """Refuse what no job's id can be, before a database stumbles over it."""
    if not re.fullmatch(r"resp_[0-9a-z]{1,32}", job_id):
        raise JobNotFoundError(job_id)


def _earlier(session: Session, key: str | None, digest: str | None) -> Job | None:
    if key is None:
        return None
    job = session.scalar(
        sa.select(Job)
        .where(Job.owner == ANONYMOUS, Job.idempotency_key == key)
        .options(selectinload(Job.attempts))
    )
    if job is not None and job.request_digest != digest:
        raise IdempotencyError
    return job


class Asking(Base):
    """Jobs as the web sees them."""

    @repeated
    def submit(self, new: NewJob, *, max_queued: int) -> tuple[Job, bool]:
        """Accept a job: when this returns, it is kept, and counts as published.

        Returns:
            The job, and whether it is new: with an idempotency key that was used for the
            same request before, it is the earlier job as it stands now.

        Raises:
            QueueFullError: ``max_queued`` jobs are waiting.
            IdempotencyError: the key was used for another request.
        """
        try:
            with self._add() as session:
                if earlier := _earlier(session, new.idempotency_key, new.request_digest):
                    return earlier, False
                waiting = session.scalar(sa.select(sa.func.count()).where(IS_QUEUED))
                if (waiting or 0) >= max_queued:
                    raise QueueFullError
                job = Job(
                    id=new_id(),
                    owner=ANONYMOUS,
                    question=new.question,
                    system=new.system,
                    temperature=new.sampling.temperature,
                    top_k=new.sampling.top_k,
                    top_p=new.sampling.top_p,
                    max_output_tokens=new.sampling.max_output_tokens,
                    seed=new.sampling.seed,
                    rounds=new.rounds,
                    priority=new.priority,
                    background=new.background,
                    metadata_=new.metadata,
                    idempotency_key=new.idempotency_key,
                    request_digest=new.request_digest,
                    attempts=[],
                )
                session.add(job)
            return job, True
        except sa.exc.IntegrityError:
            # PostgreSQL: the same key was committed between our look and our insert.
            if earlier := self.earlier(new.idempotency_key, new.request_digest):
                return earlier, False
            raise

    def earlier(self, idempotency_key: str | None, request_digest: str | None) -> Job | None:
        """Find the job that a request with this key made before.

        Raises:
            IdempotencyError: the key was used for another request.
        """
        if idempotency_key is None:
            return None
        with self._read() as session:
            return _earlier(session, idempotency_key, request_digest)

    def job(self, job_id: str) -> Job:
        """Read a job with all its attempts and the workers that ran them.

        Raises:
            JobNotFoundError: there is none with this id.
        """
        _check_id(job_id)
        with self._read() as session:
            job = session.get(
                Job, job_id, options=[selectinload(Job.attempts).selectinload(Attempt.worker)]
            )
            if job is None:
                raise JobNotFoundError(job_id)
            return job

    def standing(self, job_id: str) -> Standing:
        """Tell how far a job is, by one look at its row.

        Raises:
            JobNotFoundError: there is none with this id.
        """
        with self._read_rows() as connection:
            row = connection.execute(statements.STANDING, {"job": job_id}).one_or_none()
        if row is None:
            raise JobNotFoundError(job_id)
        return Standing(*row)

    def page(
        self,
        *,
        limit: int,
        after: str | None = None,
        newest_first: bool = True,
        attempts: bool = False,
    ) -> tuple[list[Job], bool]:
        """Read a page of jobs by age, and whether more follow.

        Args:
            limit: the most jobs to return.
            after: the id of the last job of the page before.
            newest_first: the order.
            attempts: whether to load the attempts too.

        Raises:
            JobNotFoundError: ``after`` is no job's id.
        """
        key = sa.tuple_(Job.created_at, Job.id)
        query = (
            sa.select(Job)
            .where(Job.owner == ANONYMOUS)
            .order_by(*((c.desc() if newest_first else c.asc()) for c in (Job.created_at, Job.id)))
        )
        if attempts:
            query = query.options(selectinload(Job.attempts))
        with self._read() as session:
            if after is not None:
                _check_id(after)
                last = session.get(Job, after)
                if last is None:
                    raise JobNotFoundError(after)
                cursor = sa.tuple_(
                    sa.literal(last.created_at, db.UTCDateTime()), sa.literal(last.id)
                )
                query = query.where(key < cursor if newest_first else key > cursor)
            jobs = list(session.scalars(query.limit(limit + 1)))
        return jobs[:limit], len(jobs) > limit

    @repeated
    def cancel(self, job_id: str) -> Job:
        """End a job that has not ended; one that has stays as it is.

        Whoever runs its stage stops within a second. Until it has handed in what it has, or its
        lease is over, the attempt is still running.

        Raises:
            JobNotFoundError: there is none with this id.
        """
        _check_id(job_id)
        with self._write() as connection:
            connection.execute(
                sa.update(Job)
                .where(Job.id == job_id, Job.status.in_(OPEN))
                .values(status=Status.CANCELLED, finished_at=utcnow())
            )
        return self.job(job_id)
