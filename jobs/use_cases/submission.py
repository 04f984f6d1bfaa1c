"""Accepting jobs."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.database import Database
from jobs.errors import IdempotencyError, QueueFullError, QuotaExceededError
from jobs.models import ApiKey, Job
from jobs.pipeline import Sampling, Turn
from jobs.queued_counts import QueuedCounts
from jobs.statements import jobs
from jobs.transient import retry_on_conflict


@dataclass(frozen=True)
class NewJob:
    """A question, and how to answer it."""

    question: str
    system: str
    sampling: Sampling
    rounds: int
    priority: int
    background: bool
    metadata: dict[str, str]
    input_items: list[dict[str, Any]] | None = None
    #: None for the question alone.
    turns: Sequence[Turn] | None = None
    previous_response_id: str | None = None
    options: dict[str, Any] | None = None
    #: The client's, and the SHA-256 of the request that came with it.
    idempotency_key: str | None = None
    request_digest: str | None = None
    #: The batch that the job is a line of, and the client's name for the line.
    batch_id: str | None = None
    custom_id: str | None = None
    #: The job that is replayed.
    replay_of: str | None = None


def new_id() -> str:
    """Return a new job id: 48 bits of time, so that ids sort by age, and 80 random bits."""
    return f"resp_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


@retry_on_conflict
def submit(
    database: Database,
    owner: str,
    new: NewJob,
    *,
    max_queued: int,
    key: ApiKey | None = None,
    counts: QueuedCounts | None = None,
) -> tuple[Job, bool]:
    """Accept a job. Once this returns, the job is durable and counts as published.

    The look-up of the idempotency key, the checks of the limits and the new row are one unit of work.

    Args:
        database: of the jobs.
        owner: of the job.
        new: the job.
        max_queued: the maximum number of queued jobs of all owners.
        key: the API key that the job is submitted with, if any. It may have a maximum of its own.
        counts: of the queued jobs, if this process submits many.

    Returns:
        the job, and whether it is new. It is not if its idempotency key was used for the same request
        before: then it is the job of that request, as it is now.

    Raises:
        QueueFullError: there are ``max_queued`` queued jobs.
        QuotaExceededError: there are as many queued jobs of the key as it allows.
        IdempotencyError: the key was used for a different request.
    """
    try:
        with database.write() as connection:
            if new.idempotency_key is not None:
                with Session(connection, expire_on_commit=False) as session:
                    existing = _find_existing(
                        session, owner, new.idempotency_key, new.request_digest
                    )
                if existing:
                    return existing, False
            _check_limits(connection, max_queued, key, counts or QueuedCounts())
            job = build_job(owner, new, None if key is None else key.id)
            jobs.add(connection, job)
        return job, True
    except sa.exc.IntegrityError:
        # PostgreSQL: another transaction committed the same key after this one had looked for it.
        if existing := find_by_idempotency_key(
            database, owner, new.idempotency_key, new.request_digest
        ):
            return existing, False
        raise


def find_by_idempotency_key(
    database: Database, owner: str, key: str | None, request_digest: str | None
) -> Job | None:
    """Return the job that an earlier request of the owner with this key created.

    Raises:
        IdempotencyError: the key was used for a different request.
    """
    if key is None:
        return None
    with database.read_session() as session:
        return _find_existing(session, owner, key, request_digest)


def _find_existing(
    session: Session, owner: str, key: str | None, request_digest: str | None
) -> Job | None:
    if key is None:
        return None
    job = jobs.find_by_idempotency_key(session, owner, key)
    if job is not None and job.request_digest != request_digest:
        raise IdempotencyError
    return job


def _check_limits(
    connection: sa.Connection, max_queued: int, key: ApiKey | None, counts: QueuedCounts
) -> None:
    if not counts.admit(None, max_queued, lambda: jobs.count_queued(connection)):
        raise QueueFullError
    if key is None or key.max_queued is None:
        return
    if not counts.admit(
        key.id, key.max_queued, lambda: jobs.count_queued_by_key(connection, key.id)
    ):
        raise QuotaExceededError(key.max_queued)


def build_job(owner: str, new: NewJob, key_id: str | None) -> Job:
    """Return the row of a new job, which counts as published."""
    return Job(
        id=new_id(),
        owner=owner,
        key_id=key_id,
        question=new.question,
        system=new.system,
        input_items=new.input_items,
        turns=None if new.turns is None else [asdict(turn) for turn in new.turns],
        previous_response_id=new.previous_response_id,
        options=new.options or None,
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
        batch_id=new.batch_id,
        custom_id=new.custom_id,
        replay_of=new.replay_of,
        attempts=[],
    )
