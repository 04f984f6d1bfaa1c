"""What requests use: the database, the queue, live progress, the caches, the token counter, the waiter."""

from __future__ import annotations

from collections.abc import Sequence

from flask import Flask, current_app

from jobs.combining import Combiner
from jobs.database import Database
from jobs.dispatch import publish
from jobs.models import Batch, Job, Pause
from jobs.progress import Progress
from jobs.protocol.history import history
from jobs.protocol.tokens import TokenCounter
from jobs.queue import Publisher, make_app
from jobs.queued_counts import QueuedCounts
from jobs.settings import Settings
from jobs.use_cases import (
    batches,
    cancellation,
    deletion,
    erasing,
    erasing_jobs,
    pausing,
    queries,
    retrying,
    submission,
)
from jobs.use_cases.erasing_jobs import ErasedJobs
from jobs.use_cases.matching import Step
from jobs.use_cases.owners import narrow
from jobs.use_cases.requests import Keyed
from jobs.use_cases.submission import JobRequest, NewJob
from web import tracing
from web.caller import get_caller
from web.key_cache import KeyCache
from web.running import Running
from web.summary_cache import SummaryCache
from web.waiting import Waiter


class Services:
    """The services of an application, one of each. They connect when they are first used."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.database)
        self.progress = Progress(settings.redis)
        self.publisher = Publisher(make_app(settings.redis))
        self.keys = KeyCache(self.database)
        self.tokens = TokenCounter(self.database)
        self.counts = QueuedCounts()
        self._submissions = Combiner(self._submit_all)
        self.summaries = SummaryCache(self.database)
        self.running = Running()
        self.waiter = Waiter(self.database, self.progress, self.running)

    @property
    def owner(self) -> str:
        """The owner of the jobs that the current request submits."""
        return get_caller().owner

    @property
    def readable_owner(self) -> str | None:
        """The owner whose jobs the current request may read; None for all."""
        return get_caller().readable_owner

    def init_app(self, app: Flask) -> None:
        """Make these the services of an application."""
        app.extensions["helixq"] = self

    def get_job(self, job_id: str, *, with_history: bool = False) -> Job:
        """Return a job that the current request may read; see `queries.get_job`."""
        return queries.get_job(
            self.database, self.readable_owner, job_id, with_history=with_history
        )

    def submit(self, new: NewJob) -> Job:
        """Accept a job of the current request's owner, together with those of other threads."""
        caller = get_caller()
        with tracing.sending() as sending, self.running.paused():  # More are accepted together.
            job = self._submissions.do(JobRequest(caller.owner, new, caller.key, sending.trace))
            sending.job_id = job.id
        return job

    def _submit_all(self, requests: Sequence[JobRequest]) -> list[Job | Exception]:
        """Accept jobs together. They are accepted when they are committed; if Redis is away, a sweep publishes them."""
        outcomes = submission.submit_all(
            self.database, requests, max_queued=self.settings.max_queued, counts=self.counts
        )
        accepted = [outcome for outcome in outcomes if not isinstance(outcome, Exception)]
        if created := [job for job, is_new in accepted if is_new]:
            publish(self.database, self.publisher, created)
        return [outcome if isinstance(outcome, Exception) else outcome[0] for outcome in outcomes]

    def cancel(self, job_id: str, keyed: Keyed | None = None) -> Job:
        """Cancel a job that the current request may change, and notify its readers; see `cancellation.cancel`."""
        job = cancellation.cancel(self.database, get_caller().changeable_owner, job_id, keyed)
        self.progress.publish_change(job_id)
        return job

    def retry(self, job_id: str, keyed: Keyed | None = None) -> Job:
        """Continue a failed job that the current request may change, and tell the workers and its readers; see `retrying.retry`."""
        job, is_new = retrying.retry(self.database, get_caller().changeable_owner, job_id, keyed)
        if is_new:
            publish(self.database, self.publisher, [job])
            self.progress.publish_change(job_id)
        return job

    def cancel_batch(self, batch_id: str, keyed: Keyed | None = None) -> Batch:
        """Cancel a batch that the current request may change, and notify its readers; see `batches.cancel_batch`."""
        batch, cancelled = batches.cancel_batch(
            self.database, get_caller().changeable_owner, batch_id, keyed
        )
        for job_id in cancelled:
            self.progress.publish_change(job_id)
        return batch

    def pause(self, note: str | None, keyed: Keyed | None = None) -> tuple[Pause, bool]:
        """Pause the queue in the name of the current request's owner; see `pausing.pause`."""
        note = (note or "").strip() or None
        paused = pausing.pause(self.database, get_caller().owner, note, keyed)
        self.summaries.forget()
        return paused

    def resume(self, keyed: Keyed | None = None) -> tuple[Pause | None, bool]:
        """Resume the queue in the name of the current request's owner; see `pausing.resume`."""
        resumed = pausing.resume(self.database, get_caller().owner, keyed)
        self.summaries.forget()
        return resumed

    def delete(self, job_id: str) -> None:
        """Delete a job that the current request may change, and notify its readers; see `deletion.delete`."""
        deletion.delete(self.database, get_caller().changeable_owner, job_id)
        self._forget(job_id)

    def _forget(self, job_id: str) -> None:
        self.progress.forget(job_id)
        self.progress.publish_change(job_id)

    def delete_matching(
        self,
        owner: str | None,
        metadata: dict[str, str],
        *,
        after: str | None,
        dry_run: bool,
        keyed: Keyed | None = None,
    ) -> Step:
        """Delete jobs that the current request may change, and notify their readers; see `deletion.delete_matching`."""
        any_meant, whose = narrow(get_caller().changeable_owner, owner)
        if not any_meant:
            return Step([], None)
        step = deletion.delete_matching(
            self.database, whose, metadata, after=after, dry_run=dry_run, keyed=keyed
        )
        for job_id in [] if dry_run else step.ids:
            self._forget(job_id)
        return step

    def erase(
        self, job_id: str, texts: Sequence[str] | None, keyed: Keyed | None = None
    ) -> list[str]:
        """Erase texts of a job that the current request may change, also those in Redis; see `erasing.erase`."""
        caller = get_caller()
        erased = erasing.erase(
            self.database,
            caller.changeable_owner,
            job_id,
            history,
            texts,
            erased_by=caller.owner,
            key_id=caller.key_id,
            keyed=keyed,
        )
        self.progress.forget(job_id)
        return erased

    def erase_matching(
        self,
        owner: str | None,
        metadata: dict[str, str],
        texts: Sequence[str] | None,
        *,
        after: str | None,
        dry_run: bool,
        keyed: Keyed | None = None,
    ) -> ErasedJobs:
        """Erase texts of jobs that the current request may change; see `erasing_jobs.erase_matching`."""
        caller = get_caller()
        any_meant, whose = narrow(caller.changeable_owner, owner)
        if not any_meant:
            return ErasedJobs(0)
        step = erasing_jobs.erase_matching(
            self.database,
            whose,
            metadata,
            history,
            texts,
            after=after,
            erased_by=caller.owner,
            key_id=caller.key_id,
            dry_run=dry_run,
            keyed=keyed,
        )
        for job_id in step.erased:
            self.progress.forget(job_id)
        return step


def get_services() -> Services:
    """Return the services of the current application."""
    services: Services = current_app.extensions["helixq"]
    return services
