"""Records that a worker is alive, renews its leases, and cancels generations whose leases are lost.

It also notices that the queue is resumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jobs.database import Database
from jobs.duties import Duty, DutyThread
from jobs.timing import HEARTBEAT_INTERVAL
from jobs.use_cases import workers
from worker.stage_runner import StageRunner

#: Seconds between two checks for lost leases: a cancelled job stops generating within a second.
CANCEL_INTERVAL = 0.4
#: Seconds between two checks whether the queue is still paused.
PAUSE_INTERVAL = 1.0


class Heartbeat(DutyThread):
    """Duties on their own thread, so that nothing slow, such as a Redis that hangs, delays them.

    Start it before the sweeper: the first heartbeat must come before the first sweep.
    """

    def __init__(
        self,
        database: Database,
        runner: StageRunner,
        worker_id: str,
        usage: Callable[[], Mapping[str, int]] = dict,
        register: Callable[[], object] = lambda: None,
    ) -> None:
        """
        Args:
            database: of the worker.
            runner: whose leases it renews.
            worker_id: of the worker.
            usage: returns what the worker uses, by `worker.usage`.
            register: registers the worker again.
        """
        self._register = register
        self._database = database
        self._usage = usage
        self._runner = runner
        self._worker_id = worker_id
        duties = [
            Duty(HEARTBEAT_INTERVAL, self.beat),
            Duty(CANCEL_INTERVAL, runner.cancel_lost),
            Duty(PAUSE_INTERVAL, runner.check_pause),
        ]
        super().__init__("heartbeat", duties, poll=CANCEL_INTERVAL / 2)

    def beat(self) -> None:
        """Record that the worker is alive and what it uses, and renew its leases. Register it if it has no row."""
        running, usage = self._runner.running, self._usage()
        if not workers.heartbeat(self._database, self._worker_id, running, usage):
            self._register()
