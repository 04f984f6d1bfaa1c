"""One worker process: waits for its servers, creates the engine, and consumes stages from the queue.

Nothing here imports torch, so a worker whose engine runs elsewhere does not need it.
"""

from __future__ import annotations

import gc
import logging
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial

import redis
from sqlalchemy.exc import SQLAlchemyError

import migrations
from jobs import advice, background, transient
from jobs.background import BackgroundThread
from jobs.database import Database
from jobs.models import WorkerState
from jobs.progress import Progress
from jobs.queue import make_app
from jobs.settings import Settings
from jobs.throttle import Throttle
from jobs.trace_sending import TraceSending
from jobs.use_cases import workers
from jobs.use_cases.workers import Runtime
from jobs.witnessing import Witnessing
from worker import tasks
from worker.consumer import consume
from worker.engine.interface import Engine
from worker.heartbeat import Heartbeat
from worker.metrics import MetricsServer
from worker.progress_publisher import ProgressPublisher
from worker.reconnecting import retry
from worker.stage_runner import StageRunner
from worker.usage import UsageMeter

log = logging.getLogger(__name__)

#: Creates an engine. It calls its argument as soon as the engine's runtime is known.
EngineFactory = Callable[[Callable[[Runtime], None]], tuple[Engine, Runtime]]
#: Seconds between two attempts to reach a server, and between two warnings about it.
RETRY_DELAY, LOG_INTERVAL = 1.0, 10.0
#: Threads that may wait for a reply that does not come: of the device, a witness or a receiver of traces.
MAY_HANG = (UsageMeter, Witnessing, TraceSending)
#: Seconds that a stop waits for each of them.
STOP_TIMEOUT = 1.0


def run(settings: Settings, make_engine: EngineFactory, start: float) -> int:
    """Run a worker until a signal stops it; return the exit status.

    Args:
        settings: of the worker.
        make_engine: creates the engine; its errors are raised.
        start: when the process started, on the clock of `time.monotonic`.

    Raises:
        migrations.SchemaError: the schema is not at the latest revision.
        worker.metrics.AddressError: metrics cannot be served at the address of the settings.
    """
    metrics = MetricsServer(settings)
    database = Database(settings.database)
    progress = Progress(settings.redis)
    _wait_for_servers(database, progress)
    worker_id = f"{socket.gethostname()[:24]}-{os.getpid()}-{secrets.token_hex(3)}"
    try:
        engine, runtime = make_engine(partial(_register, database, worker_id))
        # What is known of the engine once it is loaded. No stage has run on this worker before.
        describe = partial(workers.set_runtime, database, worker_id, runtime)
        _wait_for("the database", describe, transient.is_transient)
        gc.freeze()  # All objects so far live on: later collections skip them.
        publisher = ProgressPublisher(progress)
        register = partial(
            workers.register_again, database, worker_id, socket.gethostname(), os.getpid(), runtime
        )
        runner = StageRunner(
            database,
            engine,
            publisher,
            worker_id,
            job_timeout=settings.job_timeout,
            register=register,
            sends_traces=settings.otlp_endpoint is not None,
        )
        app = make_app(settings.redis, runtime.model)
        tasks.register(app, runner)
        metrics.watch(engine, runner, worker_id, runtime)
        meter = UsageMeter(engine)
        threads = [
            meter,
            Heartbeat(database, runner, worker_id, lambda: meter.last, register),
            *background.make_threads(settings, database, progress, app, runtime.model),
        ]
        with _running(threads, engine, publisher):
            return consume(
                app,
                runner,
                worker_id=worker_id,
                concurrency=engine.max_num_seqs,
                on_ready=partial(_on_ready, database, worker_id, runner, engine, start),
            )
    finally:
        metrics.close()
        _set_stopped(database, worker_id)
        progress.close()
        database.close()


def _wait_for_servers(database: Database, progress: Progress) -> None:
    """Wait for the database and Redis, and warn of settings of theirs that can cause trouble."""
    _wait_for("the database", lambda: migrations.check(database.engine), transient.is_transient)
    _wait_for("the database", database.check_writable, transient.is_transient)
    _wait_for("Redis", progress.ping, lambda error: isinstance(error, redis.RedisError))
    # Two processes: a worker and a web.
    for warning in [*advice.about_database(database, processes=2), *progress.advice()]:
        log.warning("%s", warning)


@contextmanager
def _running(
    threads: Iterable[BackgroundThread], engine: Engine, publisher: ProgressPublisher
) -> Iterator[None]:
    """Run threads during a block. Then stop them, the engine, and the publisher of its texts, in this order."""
    with ExitStack() as stack:
        stack.callback(publisher.stop)
        stack.callback(engine.close)
        for thread in threads:
            thread.start()
            timeout = STOP_TIMEOUT if isinstance(thread, MAY_HANG) else None
            stack.callback(thread.stop, timeout=timeout)
        yield


def _on_ready(
    database: Database, worker_id: str, runner: StageRunner, engine: Engine, start: float
) -> None:
    """Say that the worker consumes messages, in the database and in the log."""
    # Celery ignores errors of its signals' handlers, so transient ones must be retried here.
    runner.with_retries(lambda: workers.set_state(database, worker_id, WorkerState.READY))
    log.info(
        "ready: up to %d sequences at once, context of %d tokens, started in %.1f s",
        engine.max_num_seqs,
        engine.max_model_len,
        time.monotonic() - start,
    )


def _register(database: Database, worker_id: str, runtime: Runtime) -> None:
    log.info("the model is %s", runtime.model)
    register = partial(
        workers.register, database, worker_id, socket.gethostname(), os.getpid(), runtime
    )
    _wait_for("the database", register, transient.is_transient)


def _set_stopped(database: Database, worker_id: str) -> None:
    try:
        workers.set_state(database, worker_id, WorkerState.STOPPED)
    except SQLAlchemyError as error:
        # Without heartbeats, it counts as lost after a while.
        log.warning("the database does not respond: %s", transient.reason(error))


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
        throttle=Throttle(LOG_INTERVAL),
    )
