"""Consumes messages from Redis with Celery, and shuts down on signals without losing a stage."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable

from celery import Celery
from celery.apps.worker import Worker
from celery.exceptions import CPendingDeprecationWarning, SecurityWarning
from celery.signals import worker_ready
from celery.worker import WorkController, state

from jobs.stop_signals import STOP_SIGNALS, StopSignals
from worker import own_stop
from worker.stage_runner import StageRunner

log = logging.getLogger(__name__)

#: Seconds that stages in progress have to finish after SIGTERM before they are released.
GRACE_PERIOD = 8.0
#: Seconds after that for all else, such as a background duty that waits for a lock of the database. Supervisors wait for
#: 30 seconds in all.
STOP_TIMEOUT = 17.0


class _Worker(Worker):
    """Celery's worker without its handlers of signals.

    They wait for generations to end, acknowledge unfinished tasks on SIGQUIT, start the worker again on SIGHUP, and
    print the local variables of all threads on SIGUSR1: questions, and the settings' secrets.
    """

    def install_platform_tweaks(self, worker: WorkController) -> None:
        """Install none."""


def consume(
    app: Celery,
    runner: StageRunner,
    *,
    worker_id: str,
    concurrency: int,
    on_ready: Callable[[], None],
) -> int:
    """Consume messages until a signal stops the worker; return the exit status.

    Args:
        app: the Celery app, with its tasks registered.
        runner: runs the stages; it is stopped on a signal.
        worker_id: the worker's hostname in Celery.
        concurrency: the maximum number of stages that run at once.
        on_ready: called once the worker consumes messages.
    """
    # Celery warns against running as root, as containers do, since pickled messages can execute code. Ours
    # are JSON.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    signals = StopSignals(*STOP_SIGNALS, at_once=[signal.SIGQUIT])

    @worker_ready.connect(weak=False)
    def _ready(**_: object) -> None:
        on_ready()

    worker = _Worker(
        app=app,
        pool="threads",
        concurrency=concurrency,
        hostname=worker_id,
        loglevel=logging.WARNING,
        without_mingle=True,
        without_gossip=True,
        without_heartbeat=True,
        quiet=True,
    )
    # At each lost connection, Celery warns that a later version may cancel running tasks. That setting is off
    # here. Creating a worker resets the warning filters, so this one is added after it.
    warnings.filterwarnings(
        "ignore", message=r"\s*In Celery 5\.1", category=CPendingDeprecationWarning
    )
    signals.install()
    threading.Thread(target=_stop_on_signal, args=(runner, signals), daemon=True).start()
    worker.start()
    signals.ignore()
    return own_stop.status_after(int(worker.exitcode or 0))


def _stop_on_signal(runner: StageRunner, signals: StopSignals) -> None:
    """Shut down gracefully at the first signal, and at once at the second. Every stage is recorded or released.

    If that takes too long, exit as if killed: the leases expire, and another worker's sweep takes the stages back.
    """
    signals.wait()
    runner.drain()
    running = len(runner.running)
    if running and signals.count < 2:
        stages = "stage in progress has" if running == 1 else "stages in progress have"
        log.info("stopping; %d %s %g seconds to finish", running, stages, GRACE_PERIOD)
    elif not running:
        log.info("stopping")
    state.should_stop = 0  # type: ignore[assignment]  # typed after its first value
    if signals.wait(GRACE_PERIOD, count=2):
        log.warning("stopping now; stages in progress return to the queue")
    runner.stop()
    # The process usually ends in this time, and this thread with it.
    time.sleep(STOP_TIMEOUT)
    log.critical("exiting: the stop takes too long; stages that are left will run again")
    logging.shutdown()
    os._exit(own_stop.status_after(0) or os.EX_SOFTWARE)
