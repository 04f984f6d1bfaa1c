"""Heartbeats, leases, and the sweep that brings lost work back."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable

from jobs.progress import Progress
from jobs.queue import Doorbell, QueueUnavailableError
from jobs.store import HEARTBEAT_INTERVAL, LEASE, SWEEP_INTERVAL, Store
from worker.tasks import TRANSIENT, StageRunner

log = logging.getLogger(__name__)

#: Seconds between looks for cancelled jobs: a cancel frees its slot within one second.
CANCEL_INTERVAL = 0.4
RETENTION_INTERVAL = 3600.0
#: Seconds before a duty that the database refused is tried again.
RETRY_INTERVAL = 1.0
#: Jobs that one sweep publishes at most; the heartbeat's leases and deadlines should not wait long.
MOST_PUBLISHED = 1000

#: Seconds between two times, and what to do.
Duty = tuple[float, Callable[[], None]]


class Rescue:
    """Two threads beside the tasks that keep the promises about lost and cancelled jobs.

    The heartbeat has one to itself: nothing slow, such as a Redis that hangs, may make this
    worker look dead.
    """

    def __init__(
        self,
        store: Store,
        doorbell: Doorbell,
        progress: Progress,
        runner: StageRunner,
        worker_id: str,
        *,
        retention_days: int,
    ) -> None:
        self._store = store
        self._doorbell = doorbell
        self._progress = progress
        self._runner = runner
        self._worker_id = worker_id
        self._retention_days = retention_days
        self._stopped = threading.Event()
        self._last_heartbeat = -LEASE
        pulse: list[Duty] = [
            (HEARTBEAT_INTERVAL, self._heartbeat),
            (CANCEL_INTERVAL, runner.cancel_lost),
        ]
        care: list[Duty] = [(SWEEP_INTERVAL, self._sweep)]
        if retention_days:
            care.append((RETENTION_INTERVAL, self._delete_old))
        self._threads = [
            threading.Thread(target=self._do, args=(duties,), name=name, daemon=True)
            for name, duties in (("heartbeat", pulse), ("sweep", care))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _do(self, duties: list[Duty]) -> None:
        """Do each duty at its interval; one that failed is tried again soon."""
        due = [0.0] * len(duties)
        while not self._stopped.wait(CANCEL_INTERVAL / 2):
            for number, (interval, duty) in enumerate(duties):
                if time.monotonic() < due[number]:
                    continue
                due[number] = time.monotonic() + interval
                try:
                    duty()
                except TRANSIENT as error:
                    due[number] = time.monotonic() + min(interval, RETRY_INTERVAL)
                    log.warning(
                        "the database does not answer: %s", getattr(error, "orig", None) or error
                    )
                except Exception:
                    # Whatever it is: without these threads the promises would not hold.
                    log.exception("a duty of the rescue failed")

    def _heartbeat(self) -> None:
        self._store.heartbeat(self._worker_id, self._runner.running)
        self._last_heartbeat = time.monotonic()

    def _sweep(self) -> None:
        if time.monotonic() - self._last_heartbeat > LEASE / 2:
            return  # after an outage, the leases of this worker come first
        if not self._store.busy():
            return
        swept = self._store.sweep()
        for job_id in swept.rescued:
            log.warning("%s: its worker stopped answering; the stage goes back", job_id)
        for job_id in swept.failed:
            log.warning("%s: failed", job_id)
        for job_id in {*swept.rescued, *swept.failed, *swept.stopped}:
            self._progress.changed(job_id)
        try:
            self._publish()
        except QueueUnavailableError as error:
            log.warning("Redis does not answer; waiting jobs are published later: %s", error)

    def _publish(self) -> None:
        """Publish the jobs that wait without a message; what Redis does not take goes back."""
        queue_empty = self._doorbell.waiting() == 0
        published = 0
        while published < MOST_PUBLISHED and (
            waiting := deque(self._store.take_unpublished(queue_empty=queue_empty))
        ):
            try:
                while waiting:
                    job = waiting[0]
                    self._doorbell.publish(
                        job.job_id, position=job.position, rounds=job.rounds, priority=job.priority
                    )
                    waiting.popleft()
                    published += 1
            finally:
                if waiting:
                    self._store.put_back(waiting)
        if published:
            log.info("published %d waiting jobs", published)

    def _delete_old(self) -> None:
        if count := self._store.delete_older(self._retention_days):
            log.info("deleted %d jobs older than %d days", count, self._retention_days)
