"""Heartbeats, leases, and the sweep that brings lost work back."""

from __future__ import annotations

import datetime as dt
import logging
import os
import random
import signal
import threading
import time
from collections import deque
from collections.abc import Callable

from jobs import transient
from jobs.progress import Progress
from jobs.queue import Doorbell, QueueUnavailableError
from jobs.store import HEARTBEAT_INTERVAL, LEASE, SWEEP_INTERVAL, WORKER_STALE, Store
from worker.tasks import StageRunner

log = logging.getLogger(__name__)

#: Seconds between looks for cancelled jobs: a cancel frees its slot within one second.
CANCEL_INTERVAL = 0.4
CLEANING_INTERVAL = 3600.0
#: Seconds that cleaning goes on for, before leases and waiting jobs are looked after again.
CLEANING = 1.0
#: By how much the sweeps of several workers may come sooner, so that they do not come together.
SPREAD = 0.2
#: Seconds before a duty that the database refused is tried again.
RETRY_INTERVAL = 1.0
#: Jobs that one sweep publishes at most: leases that run out should not wait long for the next.
MOST_PUBLISHED = 1000

#: Seconds between two times, and what to do; it returns whether there is more to do soon.
Duty = tuple[float, Callable[[], bool]]


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
        model: str,
        model_timeout: float,
        retention_days: int,
    ) -> None:
        self._store = store
        self._doorbell = doorbell
        self._progress = progress
        self._runner = runner
        self._worker_id = worker_id
        self._model = model
        self._model_timeout = model_timeout
        self._retention_days = retention_days
        self._stopped = threading.Event()
        self._last_heartbeat = -LEASE
        #: Since when heartbeats have gone through without a break.
        self._alive_since = 0.0
        pulse: list[Duty] = [
            (HEARTBEAT_INTERVAL, self._heartbeat),
            (CANCEL_INTERVAL, self._cancel_lost),
        ]
        care: list[Duty] = [(SWEEP_INTERVAL, self._sweep), (CLEANING_INTERVAL, self._clean)]
        self._threads = [
            threading.Thread(target=self._do, args=(duties, spread), name=name, daemon=True)
            for name, duties, spread in (("heartbeat", pulse, 0.0), ("sweep", care, SPREAD))
        ]
        self._looked_at: dt.datetime | None = None

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stopped.set()
        for thread in self._threads:
            thread.join()

    def _do(self, duties: list[Duty], spread: float) -> None:
        """Do each duty at its interval; one that failed is tried again soon."""
        due = [0.0] * len(duties)
        while not self._stopped.wait(CANCEL_INTERVAL / 2):
            for number, (interval, duty) in enumerate(duties):
                if time.monotonic() < due[number]:
                    continue
                due[number] = time.monotonic() + interval * random.uniform(1 - spread, 1)
                try:
                    if duty():
                        due[number] = 0.0
                except Exception as error:
                    # Whatever it is: without these threads the promises would not hold.
                    due[number] = time.monotonic() + min(interval, RETRY_INTERVAL)
                    if transient.passes(error):
                        log.warning("the database does not answer: %s", transient.reason(error))
                    else:
                        log.exception("a duty of the rescue failed")

    def _heartbeat(self) -> bool:
        if not self._store.heartbeat(self._worker_id, self._runner.running):
            log.critical("this worker was not seen for so long that it was forgotten; it stops")
            os.kill(os.getpid(), signal.SIGTERM)
        now = time.monotonic()
        if now - self._last_heartbeat > LEASE:
            self._alive_since = now
        self._last_heartbeat = now
        return False

    def _cancel_lost(self) -> bool:
        self._runner.cancel_lost()
        return False

    def _sweep(self) -> bool:
        if time.monotonic() - self._last_heartbeat > LEASE / 2:
            return True  # after an outage, the leases of this worker come first
        if not self._store.busy():
            return False
        swept = self._store.sweep()
        for job_id in swept.rescued:
            log.warning("%s: its worker stopped answering; the stage goes back", job_id)
        for job_id in swept.failed:
            log.warning("%s: failed", job_id)
        restarted = self._restart()
        for job_id in {*swept.rescued, *swept.failed, *swept.stopped, *restarted}:
            self._progress.changed(job_id)
        try:
            self._publish()
        except QueueUnavailableError as error:
            log.warning("Redis does not answer; waiting jobs are published later: %s", error)
        return False

    def _publish(self) -> None:
        """Publish the jobs that wait without a message; what Redis does not take goes back."""
        queue_empty = self._doorbell.waiting() == 0
        published = 0
        while published < MOST_PUBLISHED and (
            waiting := deque(
                self._store.take_unpublished(queue_empty=queue_empty, model=self._model)
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
                    self._store.put_back(waiting)
        if published:
            log.info("published %d waiting jobs", published)

    def _clean(self) -> bool:
        """Delete what is old, a little at a time; return whether there is more."""
        give_up = time.monotonic() + CLEANING
        deleted, more = 0, bool(self._retention_days)
        while more and time.monotonic() < give_up and not self._stopped.is_set():
            began = time.monotonic()
            count = self._store.delete_older(self._retention_days)
            deleted += count
            if more := count > 0:
                self._stopped.wait(time.monotonic() - began)  # others write meanwhile
        if deleted:
            log.info("deleted %d jobs older than %d days", deleted, self._retention_days)
        if not more:
            self._looked_at = self._store.forget_workers(self._looked_at)
            more = self._looked_at is not None
        return more

    def _restart(self) -> list[str]:
        """Start jobs again whose model nobody has any more."""
        if time.monotonic() - self._alive_since < WORKER_STALE:
            return []  # after an outage, the other workers have yet to say that they are alive
        restarted = self._store.restart(self._model_timeout)
        for job_id in restarted:
            log.warning("%s: no worker with its model came back; it starts again", job_id)
        return restarted
