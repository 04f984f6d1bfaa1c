"""Publishing jobs that were accepted to the workers."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from jobs import logs
from jobs.database import Database
from jobs.errors import QueueUnavailableError
from jobs.models import Job
from jobs.pipeline import NextStage
from jobs.queue import Publisher
from jobs.use_cases import outbox

log = logging.getLogger(__name__)


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
