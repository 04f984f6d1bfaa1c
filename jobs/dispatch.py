"""Accepting, cancelling, erasing and deleting jobs, with the messages that follow: to the workers, and to live readers."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from jobs import logs
from jobs.database import Database
from jobs.errors import QueueUnavailableError
from jobs.models import ApiKey, Batch, Job
from jobs.pipeline import NextStage
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
from jobs.use_cases.requests import Keyed
from jobs.use_cases.submission import JobRequest

log = logging.getLogger(__name__)


def submit_all(
    database: Database,
    publisher: Publisher,
    requests: Sequence[JobRequest],
    *,
    max_queued: int,
    counts: QueuedCounts | None = None,
) -> list[Job | Exception]:
    """Accept jobs together and publish them to the workers; see `submission.submit_all`.

    They are accepted when they are committed. If Redis is away, a sweep publishes them later.

    Args:
        database: of the jobs.
        publisher: publishes to the workers.
        requests: for the jobs.
        max_queued: the maximum number of queued jobs of all owners.
        counts: of the queued jobs, if this process submits many.

    Returns:
        for each: the job, or the one that an earlier request with its idempotency key created, or why it
        is refused.
    """
    outcomes = submission.submit_all(database, requests, max_queued=max_queued, counts=counts)
    accepted = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
    if created := [job for job, is_new in accepted if is_new]:
        publish(database, publisher, created)
    return [outcome if isinstance(outcome, Exception) else outcome[0] for outcome in outcomes]


def cancel(
    database: Database,
    progress: Progress,
    owner: str | None,
    job_id: str,
    keyed: Keyed | None = None,
) -> Job:
    """Cancel a job, unless it has ended, and notify its readers; see `cancellation.cancel`.

    Raises:
        JobNotFoundError: there is no such job.
    """
    job = cancellation.cancel(database, owner, job_id, keyed)
    progress.publish_change(job_id)
    return job


def retry(
    database: Database,
    publisher: Publisher,
    progress: Progress,
    owner: str | None,
    job_id: str,
    keyed: Keyed | None = None,
) -> Job:
    """Let a failed job go on, and tell the workers and its readers; see `retrying.retry`.

    Raises:
        JobNotFoundError: there is no such job.
        NotRetriableError: it has not failed.
    """
    job, is_new = retrying.retry(database, owner, job_id, keyed)
    if is_new:
        publish(database, publisher, [job])
        progress.publish_change(job_id)
    return job


def cancel_batch(
    database: Database,
    progress: Progress,
    owner: str | None,
    batch_id: str,
    keyed: Keyed | None = None,
) -> Batch:
    """Begin to cancel a batch, and notify the readers of its jobs; see `batches.cancel_batch`.

    Raises:
        BatchNotFoundError: there is no such batch.
    """
    batch, cancelled = batches.cancel_batch(database, owner, batch_id, keyed)
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
    keyed: Keyed | None = None,
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
        keyed=keyed,
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
    keyed: Keyed | None = None,
) -> deletion.Step:
    """Delete the next jobs of an owner or with metadata, and notify their readers; see `deletion.delete_matching`.

    Raises:
        DeletionCursorError: ``after`` is not what an earlier step returned.
    """
    step = deletion.delete_matching(
        database, owner, metadata, after=after, dry_run=dry_run, keyed=keyed
    )
    for job_id in [] if dry_run else step.ids:
        progress.forget(job_id)
        progress.publish_change(job_id)
    return step


def publish(database: Database, publisher: Publisher, jobs: Sequence[Job]) -> None:
    """Publish the next stages of jobs that were accepted. If that fails, a sweep does it: the caller gets no error."""
    stages = [
        NextStage(job.id, job.stage_index, job.rounds, job.priority, job.model) for job in jobs
    ]
    try:
        try:
            publisher.publish(stages)
        except QueueUnavailableError as error:
            for each in stages:
                with logs.bound(job_id=each.job_id):
                    log.warning("%s: accepted; will be published later: %s", each.job_id, error)
            outbox.put_back(database, stages)
    except Exception:  # Whatever it is: a sweep publishes again what no worker claims.
        for each in stages:
            with logs.bound(job_id=each.job_id):
                log.exception("%s: accepted; will be published later", each.job_id)
