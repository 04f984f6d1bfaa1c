"""The background duties: take back what lost its worker, publish what has no message, delete what is old.

They run in every worker, and by themselves as `helixq maintain`; more than one at a time does no harm.
"""

from __future__ import annotations

import datetime as dt
import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from jobs import transient
from jobs.database import Database
from jobs.errors import QueueUnavailableError
from jobs.progress import Progress
from jobs.queue import Doorbell
from jobs.timing import ALIVE_FOR, HEARTBEAT_INTERVAL, LEASE, SWEEP_INTERVAL
from jobs.use_cases import outbox, restarting, retention, sweeping, workers

log = logging.getLogger(__name__)

CLEANUP_INTERVAL = 3600.0
#: The most seconds of cleaning up in one go: leases and waiting jobs are looked after in between.
CLEANUP_TIME = 1.0
#: By which share of its interval a sweep may come sooner, so that those of several processes spread out.
JITTER = 0.2
#: Seconds before a duty that failed is tried again.
RETRY_INTERVAL = 1.0
#: Stands for no model: jobs that have begun are left alone, since nobody would take their messages.
NO_MODEL = ""
#: The most jobs that one sweep publishes: leases that run out should not wait long for the next one.
MAX_PUBLISHED = 1000


@dataclass(frozen=True)
class Duty:
    """Something to do again and again."""

    #: Seconds between two runs.
    interval: float
    #: Does it; returns whether it is to be called again at once.
    run: Callable[[], bool]


def repeat(duties: list[Duty], stopped: threading.Event, *, poll: float, jitter: float = 0) -> None:
    """Run each duty at its interval until ``stopped`` is set. A duty that fails is run again soon.

    Args:
        duties: what to run, one after the other.
        stopped: ends the loop.
        poll: seconds between looks at what is due.
        jitter: by which share of its interval a run may come sooner.
    """
    due = [0.0] * len(duties)
    while not stopped.wait(poll):
        for number, duty in enumerate(duties):
            if time.monotonic() < due[number]:
                continue
            due[number] = time.monotonic() + duty.interval * random.uniform(1 - jitter, 1)
            try:
                if duty.run():
                    due[number] = 0.0
            except Exception as error:
                # Whatever it is: the promises about jobs rest on these loops.
                due[number] = time.monotonic() + min(duty.interval, RETRY_INTERVAL)
                if transient.is_transient(error):
                    log.warning("the database does not answer: %s", transient.reason(error))
                else:
                    log.exception("a background duty failed")


class Maintenance:
    """The duties of one process, on a thread of their own."""

    def __init__(
        self,
        database: Database,
        doorbell: Doorbell,
        progress: Progress,
        *,
        model: str | None,
        model_timeout: float,
        retention_days: int,
    ) -> None:
        """Prepare; `start` begins.

        Args:
            database: the jobs.
            doorbell: publishes what waits without a message.
            progress: tells readers of jobs that were changed.
            model: whose begun jobs to publish, as a worker with that model; None for those of all
                workers that are ready.
            model_timeout: seconds that a job waits for a worker with its model before it starts again.
            retention_days: how long jobs are kept; 0 for ever.
        """
        self._database = database
        self._doorbell = doorbell
        self._progress = progress
        self._model = model
        self._model_timeout = model_timeout
        self._retention_days = retention_days
        self._stopped = threading.Event()
        #: When the database answered last, since when it has without a break, and whether there was one.
        self._answered: float | None = None
        self._answers_since = 0.0
        self._outage = False
        #: Where `retention.delete_workers` continues.
        self._workers_until: dt.datetime | None = None
        duties = [Duty(SWEEP_INTERVAL, self.sweep), Duty(CLEANUP_INTERVAL, self.clean_up)]
        self._thread = threading.Thread(
            target=repeat,
            args=(duties, self._stopped),
            kwargs={"poll": RETRY_INTERVAL / 5, "jitter": JITTER},
            name="maintenance",
            daemon=True,
        )

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def sweep(self) -> bool:
        """Take back lost stages, end what is overdue, and publish what has no message.

        Returns:
            Whether it has to be called again soon.
        """
        busy = sweeping.any_unfinished(self._database)
        answers_for = self._note_answer()
        if self._outage and answers_for < HEARTBEAT_INTERVAL:
            return True  # leases ran out, and the workers have yet to renew them
        if not busy:
            return False
        swept = sweeping.sweep(self._database)
        for job_id in swept.taken_back:
            log.warning(
                "%s: its worker stopped answering; the stage goes back to the queue", job_id
            )
        for job_id in swept.failed:
            log.warning("%s: failed", job_id)
        restarted = self._restart(answers_for)
        for job_id in {*swept.taken_back, *swept.failed, *swept.attempts_ended, *restarted}:
            self._progress.changed(job_id)
        try:
            self._publish()
        except QueueUnavailableError as error:
            log.warning("Redis does not answer; waiting jobs are published later: %s", error)
        return False

    def _note_answer(self) -> float:
        """Note that the database answered just now; return for how many seconds it has done so."""
        now = time.monotonic()
        if self._answered is None:
            self._answers_since = now
        elif now - self._answered > LEASE:
            self._answers_since, self._outage = now, True
        self._answered = now
        return now - self._answers_since

    def _restart(self, answers_for: float) -> list[str]:
        """Start jobs again whose model no worker has any more."""
        if answers_for < ALIVE_FOR:
            return []  # workers may have been unable to say that they are alive
        restarted = restarting.restart_jobs(self._database, self._model_timeout)
        for job_id in restarted:
            log.warning("%s: no worker with its model came back; it starts again", job_id)
        return restarted

    def _publish(self) -> None:
        """Publish the jobs that wait without a message; what Redis does not take goes back."""
        queue_empty = self._doorbell.waiting() == 0
        models = {self._model or NO_MODEL}
        if self._model is None:
            models |= {worker.model for worker in workers.list_ready(self._database)}
        published = 0
        for model in sorted(models):
            while published < MAX_PUBLISHED and (
                waiting := deque(
                    outbox.take_unpublished(self._database, queue_empty=queue_empty, model=model)
                )
            ):
                try:
                    while waiting:
                        job = waiting[0]
                        self._doorbell.publish(
                            job.job_id,
                            stage_index=job.stage_index,
                            rounds=job.rounds,
                            priority=job.priority,
                            model=job.model,
                        )
                        waiting.popleft()
                        published += 1
                finally:
                    if waiting:
                        outbox.put_back(self._database, waiting)
        if published:
            log.info("published %d waiting jobs", published)

    def clean_up(self) -> bool:
        """Delete old jobs and workers, a few at a time.

        Returns:
            Whether there is more to delete.
        """
        give_up = time.monotonic() + CLEANUP_TIME
        deleted, more = 0, bool(self._retention_days)
        while more and time.monotonic() < give_up and not self._stopped.is_set():
            began = time.monotonic()
            count = retention.delete_jobs(self._database, self._retention_days)
            deleted += count
            if more := count > 0:
                self._stopped.wait(time.monotonic() - began)  # others write meanwhile
        if deleted:
            log.info("deleted %d jobs older than %d days", deleted, self._retention_days)
        if not more:
            self._workers_until = retention.delete_workers(self._database, self._workers_until)
            more = self._workers_until is not None
        return more
