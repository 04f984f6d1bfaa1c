"""What requests use: the database, the queue, live progress, the token counter and the waiter."""

from __future__ import annotations

import logging

from flask import Flask, current_app

from jobs.database import Database
from jobs.errors import QueueUnavailableError
from jobs.models import ANONYMOUS, Job
from jobs.progress import Progress
from jobs.protocol.tokens import TokenCounter
from jobs.queue import Publisher, make_app
from jobs.settings import Settings
from jobs.use_cases import cancellation, outbox, submission
from jobs.use_cases.submission import NewJob
from web.waiting import Waiter

log = logging.getLogger(__name__)


class Services:
    """One of each for an application. They connect when they are first used."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.database)
        self.progress = Progress(settings.redis)
        self.publisher = Publisher(make_app(settings.redis))
        self.tokens = TokenCounter(self.database)
        self.waiter = Waiter(self.database, self.progress)

    @property
    def owner(self) -> str:
        """The owner of the jobs of the current request. It is the same for all until there are API keys."""
        return ANONYMOUS

    def init_app(self, app: Flask) -> None:
        """Make them the services of an application."""
        app.extensions["helixq"] = self

    def submit(self, new: NewJob) -> tuple[Job, bool]:
        """Accept a job and publish it to the workers; see `submission.submit`.

        The job is accepted when it is committed. If Redis is away, a sweep publishes it later.
        """
        job, created = submission.submit(
            self.database, self.owner, new, max_queued=self.settings.max_queued
        )
        if created:
            self._publish(job)
        return job, created

    def _publish(self, job: Job) -> None:
        """Publish an accepted job. If that fails, a sweep does it: the client gets no error."""
        try:
            try:
                self.publisher.publish(
                    job.id, stage_index=0, rounds=job.rounds, priority=job.priority
                )
            except QueueUnavailableError as error:
                log.warning("%s: accepted; will be published later: %s", job.id, error)
                outbox.mark_unpublished(self.database, job.id, 0)
        except Exception:  # Whatever it is: a sweep publishes again what no worker claims.
            log.exception("%s: accepted; will be published later", job.id)

    def cancel(self, job_id: str) -> Job:
        """Cancel a job and tell its readers; see `cancellation.cancel`."""
        job = cancellation.cancel(self.database, self.owner, job_id)
        self.progress.publish_change(job_id)
        return job


def get_services() -> Services:
    """Return the services of the current application."""
    services: Services = current_app.extensions["helixq"]
    return services
