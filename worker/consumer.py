"""Takes messages from Redis with Celery, and stops on signals without losing a stage."""

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

#: Seconds that stages in progress may take to finish after SIGTERM, before they go back.
GRACE = 8.0


def consume(
    app: Celery,
    runner: StageRunner,
    *,
    worker_id: str,
    concurrency: int,
    ready: Callable[[], None],
) -> int:
    """Take messages until a signal says stop; return the exit status.

    Args:
        app: with its tasks.
        runner: what the tasks call.
        worker_id: the name that Celery shows.
        concurrency: the most stages at a time.
        ready: called once messages are taken.
    """
    # Containers run as root. Messages are JSON, so that none can bring code along.
    warnings.filterwarnings("ignore", category=SecurityWarning)

    @worker_ready.connect(weak=False)
    def _ready(**_: object) -> None:
        _handle_signals(runner)
        ready()

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
    # Celery says at each lost connection that it may end what runs, one day. Here nothing is ended and
    # nothing delivered again. (It lets all warnings through when it makes a worker, so this comes after.)
    warnings.filterwarnings(
        "ignore", message=r"\s*In Celery 5\.1", category=CPendingDeprecationWarning
    )
    worker.start()
    return int(worker.exitcode or 0)


def _handle_signals(runner: StageRunner) -> None:
    """Stop on SIGTERM and SIGINT with grace, and at once on the second one or SIGQUIT.

    Celery's own handlers know nothing of the engine, and acknowledge unfinished work on
    SIGQUIT. However fast it goes, a stage is either recorded or given back.
    """

    asked = threading.Event()

    def stop(number: int, _frame: FrameType | None) -> None:
        if asked.is_set() or number == signal.SIGQUIT:
            log.warning("stopping now; stages in progress go back to the queue")
            threading.Thread(target=runner.stop, daemon=True).start()
        else:
            log.info("stopping; stages in progress have %g seconds to finish", GRACE)
            timer = threading.Timer(GRACE, runner.stop)
            timer.daemon = True
            timer.start()
        asked.set()
        state.should_stop = 0  # type: ignore[assignment]  # typed after its first value

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, stop)
