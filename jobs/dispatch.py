"""Accepting, cancelling, erasing and deleting jobs, with the messages that follow: to the workers, and to live readers."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from jobs import logs
from jobs.database import Database
from jobs.errors import QueueUnavailableError
from jobs.models import ApiKey, Batch, Job
from jobs.progress import Progress
from jobs.protocol.history import history
from jobs.queue import Publisher
from jobs.queued_counts import QueuedCounts
from jobs.use_cases import (
    batches,
    cancellation,
    deletion,
    erasing,
    outbox,
    retrying,
    submission,
)
from jobs.use_cases.submission import NewJob

log = logging.getLogger(__name__)


def submit(
    database: Database,
    publisher: Publisher,
    owner: str,
    new: NewJob,
    *,
    max_queued: int,
    key: ApiKey | None = None,
    counts: QueuedCounts | None = None,
) -> Job:
    """Accept a job and publish it to the workers; see `submission.submit`.

    The job is accepted when it is committed. If Redis is away, a sweep publishes it later.

    Args:
        database: of the jobs.
        publisher: publishes to the workers.
        owner: of the job.
        new: the job.
        max_queued: the maximum number of queued jobs of all owners.
        key: the API key that the job is submitted with, if any.
        counts: of the queued jobs, if this process submits many.

    Returns:
        The job, or the one that an earlier request with its idempotency key created.

    Raises:
        QueueFullError: there are ``max_queued`` queued jobs.
        QuotaExceededError: there are as many queued jobs of the key as it allows.
        IdempotencyError: the key was used for a different request.
    """
    job, created = submission.submit(
        database, owner, new, max_queued=max_queued, key=key, counts=counts
    )
    if created:
        _publish(database, publisher, job)
    return job


def cancel(database: Database, progress: Progress, owner: str | None, job_id: str) -> Job:
    """Cancel a job, unless it has ended, and notify its readers; see `cancellation.cancel`.

    Raises:
        JobNotFoundError: there is no such job.
    """
    job = cancellation.cancel(database, owner, job_id)
    progress.publish_change(job_id)
    return job


def retry(
    database: Database, publisher: Publisher, progress: Progress, owner: str | None, job_id: str
) -> Job:
    """Let a failed job go on, and tell the workers and its readers; see `retrying.retry`.

    Raises:
        JobNotFoundError: there is no such job.
        NotRetriableError: it has not failed.
    """
    job = retrying.retry(database, owner, job_id)
    _publish(database, publisher, job)
    progress.publish_change(job_id)
    return job


def cancel_batch(database: Database, progress: Progress, owner: str | None, batch_id: str) -> Batch:
    """Begin to cancel a batch, and notify the readers of its jobs; see `batches.cancel_batch`.

    Raises:
        NoSuchBatchError: there is no such batch.
    """
    batch, cancelled = batches.cancel_batch(database, owner, batch_id)
    for job_id in cancelled:
        progress.publish_change(job_id)
    return batch


def delete(database: Database, progress: Progress, owner: str | None, job_id: str) -> None:
    """Delete a job with its history, and notify its readers; see `deletion.delete`.

    Raises:
        JobNotFoundError: there is no such job.
    """
    deletion.delete(database, owner, job_id)
    progress.forget(job_id)
    progress.publish_change(job_id)


def erase(
    database: Database,
    progress: Progress,
    owner: str | None,
    job_id: str,
    texts: Sequence[str] | None,
    *,
    erased_by: str,
    key: ApiKey | None = None,
) -> list[str]:
    """Erase texts of a job that has ended, also those in Redis; see `erasing.erase`."""
    erased = erasing.erase(
        database,
        owner,
        job_id,
        history,
        texts,
        erased_by=erased_by,
        key_id=None if key is None else key.id,
    )
    progress.forget(job_id)
    return erased


def delete_matching(
    database: Database,
    progress: Progress,
    owner: str | None,
    metadata: dict[str, str],
    *,
    after: str | None,
    dry_run: bool,
) -> deletion.Step:
    """Delete the next jobs of an owner or with metadata, and notify their readers; see `deletion.delete_matching`.

    Raises:
        WrongCursorError: ``after`` is none.
    """
    step = deletion.delete_matching(database, owner, metadata, after=after, dry_run=dry_run)
    for job_id in [] if dry_run else step.ids:
        progress.forget(job_id)
        progress.publish_change(job_id)
    return step


def _publish(database: Database, publisher: Publisher, job: Job) -> None:
    """Publish a job's next stage. If that fails, a sweep does it: the client gets no error."""
    with logs.bound(job_id=job.id):
        try:
            try:
                publisher.publish(
                    job.id,
                    stage_index=job.stage_index,
                    rounds=job.rounds,
                    priority=job.priority,
                    model=job.model,
                )
            except QueueUnavailableError as error:
                log.warning("%s: accepted; will be published later: %s", job.id, error)
                outbox.mark_unpublished(database, job.id, job.stage_index)
        except Exception:  # Whatever it is: a sweep publishes again what no worker claims.
            log.exception("%s: accepted; will be published later", job.id)
