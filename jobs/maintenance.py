"""The background duties: take back lost stages, publish, seal and index ended jobs, work on batches, delete
what is old.

They run in every worker, and without one as `helixq maintain`. Several processes may run them at once.
"""

from __future__ import annotations

import datetime as dt
import logging
import time

from jobs import logs
from jobs.batch_runner import BatchRunner
from jobs.clock_watch import ClockWatch
from jobs.database import Database
from jobs.duties import Duty, DutyThread
from jobs.errors import LogKeyError, QueueUnavailableError
from jobs.progress import Progress
from jobs.protocol.history import history
from jobs.queue import Publisher
from jobs.timing import ALIVE_FOR, HEARTBEAT_INTERVAL, LEASE, SWEEP_INTERVAL
from jobs.use_cases import (
    batch_answers,
    batches,
    files,
    indexing,
    log_signing,
    outbox,
    requests,
    restarting,
    retention,
    sealing,
    sweeping,
    workers,
)
from jobs.use_cases.log_signing import Signing

log = logging.getLogger(__name__)

CLEANUP_INTERVAL = 3600.0
#: Seconds between two checks for ended jobs that the log does not have.
SEAL_INTERVAL = 1.0
#: Seconds between two checks for a checkpoint that another machine signed.
CHECKPOINT_INTERVAL = 60.0
#: Seconds between two checks for ended jobs that the search index does not have.
INDEX_INTERVAL = 1.0
#: Seconds between two checkpoints of SQLite's write-ahead log.
WAL_INTERVAL = 1.0
#: Seconds between two checks for files to delete, and for something to do for a batch.
FILES_INTERVAL = 60.0
BATCHES_INTERVAL = 1.0
#: Seconds between two checks for lines of batches that have waited long.
WAITING_INTERVAL = 15.0
#: The maximum number of seconds of one cleanup: sweeps run in between.
CLEANUP_TIME = 1.0
#: The share of its interval by which a sweep may come sooner, so that those of several processes spread out.
JITTER = 0.2
#: Seconds between two checks of what is due.
POLL_INTERVAL = 0.2
#: Seconds without the database after which leases may have expired: their last heartbeats may have been due just then.
MAX_AWAY = LEASE - HEARTBEAT_INTERVAL
#: A model that no worker has: only jobs without a model are published for it.
NO_MODEL = ""
#: The maximum number of jobs that one sweep publishes: expired leases should not wait long for the next.
MAX_PUBLISHED = 1000


class Maintenance(DutyThread):
    """The duties of one process, on their own thread."""

    def __init__(
        self,
        database: Database,
        publisher: Publisher,
        progress: Progress,
        *,
        model: str | None,
        model_timeout: float,
        retention_days: int,
        signing: Signing = Signing(),  # noqa: B008 (it never changes)
    ) -> None:
        """
        Args:
            database: of the jobs.
            publisher: publishes the outbox.
            progress: gets the changes of jobs.
            model: of the jobs that have begun and are to be published; None for the models of all workers
                that are ready.
            model_timeout: seconds that a job waits for a worker with its model before it is restarted.
            retention_days: how long jobs are kept; 0 means forever.
            signing: signs the log.
        """
        self._database = database
        self._publisher = publisher
        self._progress = progress
        self._model = model
        self._model_timeout = model_timeout
        self._retention_days = retention_days
        self._signing = signing
        #: Why the log cannot be signed, so that it is said once.
        self._unsigned: str | None = None
        #: When the database last responded.
        self._responded_at: float | None = None
        #: Since when it has responded without an outage, and whether there ever was one.
        self._responding_since = 0.0
        self._had_outage = False
        self._clock = ClockWatch(database)
        #: Where `retention.delete_workers` continues.
        self._workers_until: dt.datetime | None = None
        duties = [
            Duty(SWEEP_INTERVAL, self.sweep),
            Duty(CHECKPOINT_INTERVAL, self.keep_checkpoint),
            Duty(SEAL_INTERVAL, self.seal),
            Duty(INDEX_INTERVAL, self.index),
            Duty(WAL_INTERVAL, database.checkpoint_wal),
            Duty(BATCHES_INTERVAL, self.work_on_batches),
            Duty(WAITING_INTERVAL, self.raise_waiting_lines),
            Duty(FILES_INTERVAL, self.sweep_files),
            Duty(CLEANUP_INTERVAL, self.clean_up),
        ]
        super().__init__("maintenance", duties, poll=POLL_INTERVAL, jitter=JITTER)
        self._batches = BatchRunner(database, publisher, progress, self.stopped)

    def sweep(self) -> bool:
        """Take back lost stages, end overdue jobs, and publish the outbox.

        Returns:
            whether to call it again at once.
        """
        busy = sweeping.any_unfinished(self._database)
        responding_for = self._note_response()
        if self._had_outage and responding_for < HEARTBEAT_INTERVAL:
            return True  # Leases have expired, and the workers have yet to extend them.
        if not busy:
            return False
        try:
            swept = sweeping.sweep(self._database)
        except Exception:
            # It can be read and not written, and so the workers cannot extend their leases.
            self._note_outage()
            raise
        for job_id in swept.taken_back:
            _warn(job_id, "its worker stopped responding; the stage returns to the queue")
        for job_id in swept.failed:
            _warn(job_id, "failed")
        restarted = self._restart(responding_for)
        for job_id in {*swept.taken_back, *swept.failed, *swept.attempts_ended, *restarted}:
            self._progress.publish_change(job_id)
        try:
            self._publish()
        except QueueUnavailableError as error:
            log.warning("Redis does not respond; unpublished jobs are published later: %s", error)
        return False

    def _note_response(self) -> float:
        """Note that the database responds; return for how many seconds it has without an outage.

        A clock that was set forwards counts as one, and so does a machine that was suspended.
        """
        was_set_forwards = self._clock.look() > 0
        now = time.monotonic()
        if self._responded_at is None:
            self._responding_since = now
        elif now - self._responded_at > MAX_AWAY or was_set_forwards:
            self._note_outage()
        self._responded_at = now
        return now - self._responding_since

    def _note_outage(self) -> None:
        self._responding_since, self._had_outage = time.monotonic(), True

    def _restart(self, responding_for: float) -> list[str]:
        """Restart the jobs whose model no worker has any more."""
        if responding_for < ALIVE_FOR:
            return []  # Workers may have been unable to send heartbeats.
        restarted = restarting.restart_jobs(self._database, self._model_timeout)
        for job_id in restarted:
            _warn(job_id, "no worker with its model came back; it restarts")
        return restarted

    def _publish(self) -> None:
        """Publish the outbox. Jobs that Redis refuses stay in it."""
        queue_empty = self._publisher.queue_length() == 0
        models = {self._model or NO_MODEL}
        if self._model is None:
            models |= {worker.model for worker in workers.list_ready(self._database)}
        published = 0
        for model in sorted(models):
            while published < MAX_PUBLISHED and (
                waiting := outbox.take_unpublished(
                    self._database, queue_empty=queue_empty, model=model
                )
            ):
                try:
                    self._publisher.publish(waiting)
                except BaseException:
                    outbox.put_back(self._database, waiting)
                    raise
                published += len(waiting)
        if published:
            log.info("published %d jobs from the outbox", published)

    def seal(self) -> bool:
        """Append ended jobs, reviews, erasures and deletions to the log, and sign it.

        Returns:
            whether to call it again at once.
        """
        if not sealing.any_pending(self._database):
            return False
        try:
            prepared = sealing.prepare(self._database, history)
            appended = sealing.append(self._database, prepared, self._signing)
        except LogKeyError as error:
            self._say_unsigned(error)
            return False
        self._unsigned = None
        return max(len(prepared), appended) >= sealing.MAX_JOBS  # Deletions are not prepared.

    def keep_checkpoint(self) -> None:
        """Keep the log's newest checkpoint on this machine; say so if the log was set back."""
        if self._signing.kept is not None:
            try:
                log_signing.keep_newest(self._database, self._signing.kept)
            except LogKeyError as error:
                self._say_unsigned(error)

    def _say_unsigned(self, error: LogKeyError) -> None:
        """Say why the log cannot be signed, once."""
        if str(error) != self._unsigned:
            log.error("ended jobs do not get into the log: %s", error)
        self._unsigned = str(error)

    def index(self) -> bool:
        """Put ended jobs, and what changed of them, into the search index.

        Returns:
            whether to call it again at once.
        """
        if not indexing.any_pending(self._database):
            return False
        prepared = indexing.prepare(self._database)
        indexing.put(self._database, prepared)
        indexing.merge(self._database)
        return len(prepared) == indexing.MAX_JOBS

    def work_on_batches(self) -> bool:
        """Validate, submit and answer lines of batches; see `BatchRunner.run`."""
        return self._batches.run()

    def raise_waiting_lines(self) -> None:
        """Let lines of batches that have waited long take their turn among single questions."""
        if count := batch_answers.raise_waiting_lines(self._database):
            log.info("%d lines of batches have waited long and get the default priority", count)

    def sweep_files(self) -> bool:
        """Delete files that have expired, were lost or were deleted, a piece at a time.

        Returns:
            whether more is left to delete.
        """
        return files.sweep_files(self._database, self._retention_days)

    def clean_up(self) -> bool:
        """Delete old jobs, batches, workers and requests with an idempotency key, a few at a time.

        Returns:
            whether more is left to delete.
        """
        deadline = time.monotonic() + CLEANUP_TIME
        deleted, has_more = 0, bool(self._retention_days)
        while has_more and time.monotonic() < deadline and not self.stopped.is_set():
            start = time.monotonic()
            count = retention.delete_jobs(self._database, self._retention_days)
            deleted += count
            if has_more := count > 0:
                self.stopped.wait(time.monotonic() - start)  # Others can write meanwhile.
        if deleted:
            log.info("deleted %d jobs older than %d days", deleted, self._retention_days)
        if not has_more and self._retention_days:
            has_more = batches.delete_batches(self._database, self._retention_days) > 0
        if not has_more:
            self._workers_until = retention.delete_workers(self._database, self._workers_until)
            has_more = self._workers_until is not None
        return requests.delete_requests(self._database) > 0 or has_more


def _warn(job_id: str, what: str) -> None:
    with logs.bound(job_id=job_id):
        log.warning("%s: %s", job_id, what)
