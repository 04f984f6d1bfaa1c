"""Records that a worker is alive, renews its leases, and cancels generations whose leases are lost."""

from __future__ import annotations

import logging
import os
import signal

from jobs.database import Database
from jobs.duties import Duty, DutyThread
from jobs.timing import HEARTBEAT_INTERVAL
from jobs.use_cases import workers
from worker.tasks import StageRunner

log = logging.getLogger(__name__)

#: Seconds between two checks for lost leases: a cancelled job stops generating within a second.
CANCEL_INTERVAL = 0.4


class Heartbeat(DutyThread):
    """Two duties on their own thread, so that nothing slow, such as a Redis that hangs, delays them.

    Start it before the maintenance: the first heartbeat must come before the first sweep.
    """

    def __init__(self, database: Database, runner: StageRunner, worker_id: str) -> None:
        self._database = database
        self._runner = runner
        self._worker_id = worker_id
        duties = [Duty(HEARTBEAT_INTERVAL, self.beat), Duty(CANCEL_INTERVAL, self.cancel_lost)]
        super().__init__("heartbeat", duties, poll=CANCEL_INTERVAL / 2)

    def beat(self) -> bool:
        """Record that the worker is alive, and renew its leases. It shuts down if its row was deleted."""
        if not workers.heartbeat(self._database, self._worker_id, self._runner.running):
            log.critical(
                "stopping: this worker's row was deleted, since it sent no heartbeat for too long"
            )
            os.kill(os.getpid(), signal.SIGTERM)
        return False

    def cancel_lost(self) -> bool:
        """Cancel the generations whose leases are lost."""
        self._runner.cancel_lost()
        return False
