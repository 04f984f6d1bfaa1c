"""Consumes messages from Redis with Celery, and shuts down on signals without losing a stage."""

from __future__ import annotations

import logging
import signal
import threading
import warnings
from collections.abc import Callable
from types import FrameType

from celery import Celery
from celery.exceptions import CPendingDeprecationWarning, SecurityWarning
from celery.signals import worker_ready
from celery.worker import state

from worker.tasks import StageRunner

log = logging.getLogger(__name__)

#: Seconds that stages in progress have to finish after SIGTERM before they are released.
GRACE_PERIOD = 8.0


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

    @worker_ready.connect(weak=False)
    def _ready(**_: object) -> None:
        _handle_signals(runner)
        on_ready()

    worker = app.Worker(
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
    worker.start()
    return int(worker.exitcode or 0)


def _handle_signals(runner: StageRunner) -> None:
    """Shut down gracefully on SIGTERM and SIGINT, and at once on a second signal or SIGQUIT.

    They replace Celery's handlers, which do not cancel generations, and acknowledge unfinished tasks on
    SIGQUIT. Either way, every stage is recorded or released.
    """
    signalled = threading.Event()

    def stop(number: int, _frame: FrameType | None) -> None:
        if signalled.is_set() or number == signal.SIGQUIT:
            log.warning("stopping now; stages in progress return to the queue")
            threading.Thread(target=runner.stop, daemon=True).start()
        else:
            log.info("stopping; stages in progress have %g seconds to finish", GRACE_PERIOD)
            timer = threading.Timer(GRACE_PERIOD, runner.stop)
            timer.daemon = True
            timer.start()
        signalled.set()
        state.should_stop = 0  # type: ignore[assignment]  # typed after its first value

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, stop)
