"""Heartbeats, leases, and the sweep that brings lost work back."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from sqlalchemy.exc import OperationalError

from jobs.progress import Progress
from jobs.queue import Doorbell, QueueUnavailableError
from jobs.store import HEARTBEAT_INTERVAL, SWEEP_INTERVAL, Store
from worker.tasks import StageRunner

log = logging.getLogger(__name__)

#: Seconds between looks for cancelled jobs: a cancel frees its slot within one second.
CANCEL_INTERVAL = 0.4
RETENTION_INTERVAL = 3600.0


class Rescue:
    """A thread beside the tasks that keeps the promises about lost and cancelled jobs."""

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
        self._thread = threading.Thread(target=self._watch, name="rescue", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        duties: list[tuple[float, Callable[[], None]]] = [
            (HEARTBEAT_INTERVAL, lambda: self._store.heartbeat(self._worker_id)),
            (CANCEL_INTERVAL, self._runner.cancel_lost),
            (SWEEP_INTERVAL, self._sweep),
        ]
        if self._retention_days:
            duties.append((RETENTION_INTERVAL, self._delete_old))
        due = [0.0] * len(duties)
        while not self._stopped.wait(CANCEL_INTERVAL / 2):
            for number, (interval, duty) in enumerate(duties):
                if time.monotonic() < due[number]:
                    continue
                due[number] = time.monotonic() + interval
                try:
                    duty()
                except OperationalError as error:
                    log.warning("the database does not answer: %s", error.orig)
                except Exception:
                    # Whatever it is: without heartbeats this worker would be taken for dead.
                    log.exception("a duty of the rescue failed")

    def _sweep(self) -> None:
        swept = self._store.sweep()
        for job_id in swept.rescued:
            log.warning("%s: its worker stopped answering; the stage goes back", job_id)
        for job_id in swept.failed:
            log.warning("%s: failed", job_id)
        for job_id in {*swept.rescued, *swept.failed}:
            self._progress.changed(job_id)
        try:
            waiting = self._store.unpublished(queue_empty=self._doorbell.waiting() == 0)
            for job in waiting:
                self._doorbell.publish(
                    job.job_id, position=job.position, rounds=job.rounds, priority=job.priority
                )
                self._store.mark_published(job.job_id, job.position)
        except QueueUnavailableError as error:
            log.warning("Redis does not answer; waiting jobs are published later: %s", error)
        else:
            if waiting:
                log.info("published %d waiting jobs", len(waiting))

    def _delete_old(self) -> None:
        if count := self._store.delete_older(self._retention_days):
            log.info("deleted %d jobs older than %d days", count, self._retention_days)
