"""One worker process: waits for its servers, makes the engine, takes stages from the queue.

Nothing here imports torch: an engine elsewhere needs none.
"""

from __future__ import annotations

import gc
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable
from functools import partial

import redis
from sqlalchemy.exc import SQLAlchemyError

import migrations
from jobs import advice, transient
from jobs.database import Database
from jobs.maintenance import Maintenance
from jobs.models import WorkerState
from jobs.progress import Progress
from jobs.queue import Publisher, make_app
from jobs.retrying import retry
from jobs.settings import Settings
from jobs.use_cases import workers
from jobs.use_cases.workers import Runtime
from worker import tasks
from worker.consumer import consume
from worker.engine.interface import Engine
from worker.heartbeat import Heartbeat
from worker.reporter import Reporter
from worker.tasks import StageRunner

log = logging.getLogger(__name__)

#: Makes an engine. It calls its argument as soon as it knows what the engine will serve.
Factory = Callable[[Callable[[Runtime], None]], tuple[Engine, Runtime]]
#: Seconds between two tries to reach a server, and between two log lines about it.
RETRY_DELAY, LOG_INTERVAL = 1.0, 10.0


def run(settings: Settings, make_engine: Factory, started: float) -> int:
    """Run a worker until it is told to stop; return the exit status.

    Args:
        settings: the worker's.
        make_engine: makes what generates; what it raises ends the worker.
        started: when the process did, on `time.monotonic`'s clock.

    Raises:
        migrations.SchemaError: the database was not migrated.
    """
    database = Database(settings.database)
    progress = Progress(settings.redis)
    _wait_for("the database", lambda: migrations.check(database.engine), transient.is_transient)
    _wait_for("the database", database.check_writable, transient.is_transient)
    _wait_for("Redis", progress.ping, lambda error: isinstance(error, redis.RedisError))
    # This process, and a web.
    for sentence in [*advice.about_database(database, processes=2), *progress.advice()]:
        log.warning("%s", sentence)
    worker_id = f"{socket.gethostname()[:24]}-{os.getpid()}-{secrets.token_hex(3)}"
    try:
        engine, runtime = make_engine(partial(_register, database, worker_id))
        gc.freeze()  # what is there by now stays: no collection needs to look at it again
        reporter = Reporter(progress)
        runner = StageRunner(
            database, engine, reporter, worker_id, job_timeout=settings.job_timeout
        )
        app = make_app(settings.redis, runtime.model)
        tasks.register(app, runner)
        heartbeat = Heartbeat(database, runner, worker_id)
        maintenance = Maintenance(
            database,
            Publisher(app),
            progress,
            model=runtime.model,
            model_timeout=settings.model_timeout,
            retention_days=settings.retention_days,
        )

        def ready() -> None:
            # Celery swallows what its signals' handlers raise.
            runner.with_retries(lambda: workers.set_state(database, worker_id, WorkerState.READY))
            log.info(
                "ready: %d at a time, %d tokens of context, %.1f s after the start",
                engine.max_num_seqs,
                engine.max_model_len,
                time.monotonic() - started,
            )

        heartbeat.start()
        maintenance.start()
        try:
            return consume(
                app, runner, worker_id=worker_id, concurrency=engine.max_num_seqs, ready=ready
            )
        finally:
            maintenance.stop()
            heartbeat.stop()
            engine.close()
            reporter.stop()
    finally:
        _say_stopped(database, worker_id)
        progress.close()
        database.close()


def _register(database: Database, worker_id: str, runtime: Runtime) -> None:
    log.info("the model is %s", runtime.model)
    registering = partial(
        workers.register, database, worker_id, socket.gethostname(), os.getpid(), runtime
    )
    _wait_for("the database", registering, transient.is_transient)


def _say_stopped(database: Database, worker_id: str) -> None:
    try:
        workers.set_state(database, worker_id, WorkerState.STOPPED)
    except SQLAlchemyError as error:
        # It counts as gone when it has not been seen for a while.
        log.warning("the database does not answer: %s", transient.reason(error))


def _wait_for(
    server: str, call: Callable[[], None], is_transient: Callable[[BaseException], bool]
) -> None:
    """Call a server until it responds.

    Raises:
        Exception: an error that is not transient.
    """
    retry(
        call,
        is_transient=is_transient,
        log=log,
        message=f"waiting for {server}",
        min_delay=RETRY_DELAY,
        max_delay=RETRY_DELAY,
        log_interval=LOG_INTERVAL,
    )
