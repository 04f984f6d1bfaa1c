"""Requests that wait for jobs, and the maximum number of them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from jobs.database import Database
from jobs.models import Job
from jobs.progress import Progress
from jobs.protocol.errors import UnavailableError
from jobs.use_cases import queries
from web.running import Running

#: Requests that may wait for jobs at the same time, event streams included.
MAX_WAITING = 200
#: Seconds between checks of a job's row when Redis has no news: news can be lost.
CHECK_INTERVAL = 1.0
#: The maximum number of seconds to block, so that a wait notices when it should end.
MAX_BLOCK = 1.0


class Waiter:
    """Waits for jobs on behalf of requests. Threads share it."""

    def __init__(self, database: Database, progress: Progress, running: Running) -> None:
        self._database = database
        self._progress = progress
        self._running = running
        self._slots = threading.BoundedSemaphore(MAX_WAITING)
        #: Returns whether the server is shutting down: waits and event streams should end.
        self.stopping: Callable[[], bool] = lambda: False

    @contextmanager
    def slot(self) -> Iterator[None]:
        """Occupy one of the slots for waiting requests, so that some threads stay free for others.

        Raises:
            UnavailableError: all slots are taken.
        """
        if not self._slots.acquire(blocking=False):
            raise UnavailableError(
                "Too many requests are waiting for jobs. Set `background` and poll, or retry later.",
                code="too_many_waiting",
            )
        try:
            yield
        finally:
            self._slots.release()

    def wait(
        self,
        owner: str | None,
        job_id: str,
        until: Callable[[Job], bool],
        timeout: float,
        disconnected: Callable[[], bool] = lambda: False,
    ) -> Job:
        """Wait until a job meets a condition; return the job.

        It also returns when the time is up, the server is shutting down or the client has gone.

        Args:
            owner: of the job; None for any.
            job_id: of an existing job.
            until: the condition. It is checked whenever the job changes.
            timeout: in seconds.
            disconnected: returns whether the client has closed its connection.

        Raises:
            JobNotFoundError: there is no such job.
        """
        deadline = time.monotonic() + timeout
        with self._running.paused(), self._progress.follow(job_id) as follower:
            version = queries.get_version(self._database, owner, job_id)
            job = queries.get_job(self._database, owner, job_id)
            checked_at = time.monotonic()
            while not (
                until(job) or time.monotonic() >= deadline or self.stopping() or disconnected()
            ):
                remaining = max(deadline - time.monotonic(), 0.001)
                update = follower.read(min(remaining, MAX_BLOCK))
                if update.changed or time.monotonic() - checked_at >= CHECK_INTERVAL:
                    checked_at = time.monotonic()
                    current = queries.get_version(self._database, owner, job_id)
                    if current != version:
                        version, job = current, queries.get_job(self._database, owner, job_id)
        return job
