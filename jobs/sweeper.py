"""The sweep: it takes back lost stages, ends overdue jobs, and publishes what is not published.

Every worker sweeps, and without one `helixq maintain`. Several processes may sweep at once.
"""

from __future__ import annotations

import logging
import time

from jobs import logs
from jobs.clock_watch import ClockWatch
from jobs.database import Database
from jobs.duties import JITTER, Duty, DutyThread
from jobs.errors import QueueUnavailableError
from jobs.progress import Progress
from jobs.queue import Publisher
from jobs.timing import ALIVE_FOR, HEARTBEAT_INTERVAL, LEASE, SWEEP_INTERVAL
from jobs.use_cases import outbox, restarting, sweeping, workers

log = logging.getLogger(__name__)

#: Seconds without the database after which leases may have expired: their last heartbeats may have been due just then.
MAX_AWAY = LEASE - HEARTBEAT_INTERVAL
#: A model that no worker has: only jobs without a model are published for it.
NO_MODEL = ""
#: The maximum number of jobs that one sweep publishes: expired leases should not wait long for the next.
MAX_PUBLISHED = 1000


class Sweeper(DutyThread):
    """The sweep, on its own thread: no other duty that is slow, or waits for a lock, delays a lost stage."""

    def __init__(
        self,
        database: Database,
        publisher: Publisher,
        progress: Progress,
        *,
        model: str | None,
        model_timeout: float,
    ) -> None:
        """
        Args:
            database: of the jobs.
            publisher: publishes the outbox.
            progress: gets the changes of jobs.
            model: of the jobs that have begun and are to be published; None for the models of all workers
                that are ready.
            model_timeout: seconds that a job waits for a worker with its model before it is restarted.
        """
        self._database = database
        self._publisher = publisher
        self._progress = progress
        self._model = model
        self._model_timeout = model_timeout
        #: When the database last responded.
        self._responded_at: float | None = None
        #: Since when it has responded without an outage, and whether there ever was one.
        self._responding_since = 0.0
        self._had_outage = False
        self._clock = ClockWatch(database)
        duties = [Duty(SWEEP_INTERVAL, self.sweep)]
        super().__init__("sweep", duties, jitter=JITTER)

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
            swept = sweeping.sweep(self._database, self._progress.close_texts)
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


def _warn(job_id: str, what: str) -> None:
    with logs.bound(job_id=job_id):
        log.warning("%s: %s", job_id, what)
