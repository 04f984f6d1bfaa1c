"""Says that a worker is alive, renews its leases, and stops what it should no longer run."""

from __future__ import annotations

import logging
import os
import signal
import threading

from jobs.database import Database
from jobs.maintenance import Duty, repeat
from jobs.timing import HEARTBEAT_INTERVAL
from jobs.use_cases import workers
from worker.tasks import StageRunner

log = logging.getLogger(__name__)

#: Seconds between looks for cancelled jobs: a cancel frees its slot within one second.
CANCEL_INTERVAL = 0.4


class Heartbeat:
    """A thread of its own: nothing slow, such as a Redis that hangs, may make the worker look dead."""

    def __init__(self, database: Database, runner: StageRunner, worker_id: str) -> None:
        self._database = database
        self._runner = runner
        self._worker_id = worker_id
        self._stopped = threading.Event()
        duties = [Duty(HEARTBEAT_INTERVAL, self.beat), Duty(CANCEL_INTERVAL, self.cancel_lost)]
        self._thread = threading.Thread(
            target=repeat,
            args=(duties, self._stopped),
            kwargs={"poll": CANCEL_INTERVAL / 2},
            name="heartbeat",
            daemon=True,
        )

    def start(self) -> None:
        """Say that the worker is alive, before its first sweep, and go on."""
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()

    def beat(self) -> bool:
        """Renew the leases of what the worker runs. A worker that was forgotten ends."""
        if not workers.heartbeat(self._database, self._worker_id, self._runner.running):
            log.critical("this worker was not seen for so long that it was forgotten; it stops")
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    def cancel_lost(self) -> bool:
        """Stop generations whose jobs were cancelled or taken away."""
        self._runner.cancel_lost()
        return False
