"""One worker process: waits for its servers, loads the model, serves the queue."""

from __future__ import annotations

import gc
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from types import FrameType
from typing import NoReturn

import redis
import transformers
from celery import Celery
from celery.exceptions import SecurityWarning
from celery.signals import worker_ready
from celery.worker import state
from sqlalchemy.exc import SQLAlchemyError
from torch import Tensor

import migrations
from jobs import transient
from jobs.models import WorkerState
from jobs.pipeline import Role, Sampling
from jobs.progress import Progress
from jobs.queue import Doorbell, make_app
from jobs.settings import Settings
from jobs.store import Runtime, Store
from worker import checkpoints, loading, tasks
from worker.checkpoints import CheckpointError, Checkpoints
from worker.digests import Digests
from worker.engine import probe
from worker.engine.batching import BatchingEngine
from worker.engine.cuda.requirements import DeviceError
from worker.engine.interface import Engine, EngineError, Request
from worker.engine.reference import ReferenceEngine
from worker.engine.threads import beside
from worker.phases import phase
from worker.reporter import Reporter
from worker.rescue import Rescue
from worker.tasks import StageRunner

log = logging.getLogger(__name__)

#: Seconds that stages in progress may take to finish after SIGTERM, before they go back.
GRACE = 8.0
#: Seconds between saying again that a server is not there yet.
SAY_INTERVAL = 10.0


#: What each role is asked before the worker takes jobs.
WARM_UP = "Hello"


def run(settings: Settings, digests: Digests, started: float) -> int:
    """Run a worker until it is told to stop; return the exit status.

    Args:
        settings: the worker's.
        digests: what is being hashed already.
        started: when the process did, on `time.monotonic`'s clock.

    Raises:
        CheckpointError: the model or an adapter cannot be used.
        migrations.SchemaError: the database was not migrated.
    """
    _quieten()
    store = Store(settings.database)
    progress = Progress(settings.redis)
    _wait_for("the database", lambda: migrations.check(store.engine), transient.passes)
    _wait_for("the database", store.check_writable, transient.passes)
    _wait_for("Redis", progress.ping, lambda error: isinstance(error, redis.RedisError))
    found = checkpoints.find(settings, digests)
    reasons = loading.unbatchable(found)
    worker_id = f"{socket.gethostname()[:24]}-{os.getpid()}-{secrets.token_hex(3)}"
    try:
        slots = None if settings.slots == "auto" else settings.slots
        with phase("hashing and loading"):
            engine, runtime = _load(
                found, digests, slots, reasons, partial(_register, store, worker_id)
            )
        with phase("warming up"):
            _warm_up(engine)
        gc.freeze()  # what is there by now stays: no collection needs to look at it again
        reporter = Reporter(progress)
        runner = StageRunner(store, engine, reporter, worker_id, job_timeout=settings.job_timeout)
        app = make_app(settings.redis, runtime.model)
        tasks.register(app, runner)
        rescue = Rescue(
            store,
            Doorbell(app),
            progress,
            runner,
            worker_id,
            model=runtime.model,
            model_timeout=settings.model_timeout,
            retention_days=settings.retention_days,
        )
        rescue.start()
        try:
            return _serve(app, engine, runner, store, worker_id, started)
        finally:
            rescue.stop()
            engine.close()
            reporter.stop()
    finally:
        _say_stopped(store, worker_id)
        progress.close()
        store.close()


def _register(store: Store, worker_id: str, runtime: Runtime) -> None:
    log.info("the model is %s", runtime.model)
    registering = partial(store.register, worker_id, socket.gethostname(), os.getpid(), runtime)
    _wait_for("the database", registering, transient.passes)


def _load(
    found: Checkpoints,
    digests: Digests,
    slots: int | None,
    reasons: list[str],
    register: Callable[[Runtime], None],
) -> tuple[Engine, Runtime]:
    """Load the model while it is still being hashed; register the worker as soon as that is done.

    What goes wrong in loading is said first, and at once.

    Args:
        found: the base and its adapters.
        digests: what hashes them.
        slots: requests to decode together; as many as suit the device if None.
        reasons: why model and adapters cannot be batched.
        register: makes known what the worker will serve.

    Raises:
        CheckpointError: the model cannot be used, or changed meanwhile.
    """

    def hurry(loading: Future[Engine]) -> None:
        if loading.exception() is not None:
            digests.stop()

    with beside(partial(_start_engine, found, slots, reasons)) as loading:
        loading.add_done_callback(hurry)
        try:
            runtime = Runtime(
                description=found.describe(
                    ReferenceEngine.name if reasons else BatchingEngine.name
                ),
                context=found.context,
                tokenizer=found.tokenizer.backend_tokenizer.to_str(),
            )
            register(runtime)
            loading.result()
            found.check_unchanged()
        except Exception:
            loading.result().close()
            raise
        return loading.result(), runtime


def _start_engine(found: Checkpoints, slots: int | None, reasons: list[str]) -> Engine:
    """Load the model into the engine that batches, or where that cannot be, into the reference.

    Args:
        found: the base and its adapters.
        slots: requests to decode together; as many as suit the device if None.
        reasons: why model and adapters cannot be batched.

    Raises:
        CheckpointError: the weights cannot be used, or leave no memory for the context.
    """
    loaded = loading.load(found)
    if reasons:
        log.warning(
            "the reference engine serves one request at a time, because of %s", "; ".join(reasons)
        )
        reference = ReferenceEngine(loaded.models, found.tokenizer, context=found.context)
        return _proved(reference, found, loaded.scores, probe.SAME)
    for role, changed in loaded.changed.items():
        if changed:
            raise CheckpointError(
                f"The {role} adapter {found.adapters[Role(role)].name} cannot be served: it changes "
                f"{changed[0]} of the base as it loads, which nothing in its config tells; give "
                "a plain LoRA in HELIXQ_ADAPTERS"
            )
    try:
        engine = BatchingEngine(
            loaded.models,
            found.tokenizer,
            context=found.context,
            slots=slots,
            # Not the digests: they may still be being made.
            keys=[str(found.adapters[Role(name)].path.resolve()) for name in loaded.models],
            on_device_lost=_die,
        )
    except DeviceError as error:
        raise CheckpointError(f"HELIXQ_DEVICE={found.device} cannot be used: {error}") from error
    except EngineError as error:
        raise CheckpointError(
            f"The adapters cannot be served by the batching engine: {error}, which nothing in its config "
            "tells; give plain LoRAs in HELIXQ_ADAPTERS"
        ) from error
    log.info(
        "up to %d stages at a time; keys and values have room for %d tokens, of %d at most each",
        engine.slots,
        engine.tokens_that_fit,
        found.context,
    )
    return _proved(engine, found, loaded.scores, probe.TOLERANCE[found.dtype])


def _proved(
    engine: BatchingEngine | ReferenceEngine,
    found: Checkpoints,
    scores: dict[str, Tensor],
    tolerance: float,
) -> Engine:
    """Make sure that an engine computes each role as PEFT did when its adapter alone was there."""
    try:
        mine = engine.score(probe.tokens(found.config))
        probe.check(mine, scores, found.dtype, tolerance)
    except probe.ProbeError as error:
        engine.close()
        adapter = found.adapters[Role(error.name)].name
        raise CheckpointError(
            f"The {error.name} adapter {adapter} cannot be served by the {engine.name} engine: {error}"
        ) from error
    return engine


def _die() -> NoReturn:
    """End at once, as if killed: the leases run out, and another worker's sweep takes the stages.

    To give them back would not count them as attempts, and a stage whose fault it is would bring down
    one worker after the other for ever.
    """
    log.critical("the worker ends, since its device does; its stages will run again")
    logging.shutdown()
    os._exit(os.EX_SOFTWARE)


def _serve(
    app: Celery,
    engine: Engine,
    runner: StageRunner,
    store: Store,
    worker_id: str,
    started: float,
) -> int:
    """Take messages until a signal says stop."""

    @worker_ready.connect(weak=False)
    def _ready(**_: object) -> None:
        _handle_signals(runner)
        # Celery swallows what its signals' handlers raise.
        runner.patiently(lambda: store.set_worker_state(worker_id, WorkerState.READY))
        log.info(
            "ready: %d at a time, %d tokens of context, %.1f s after the start",
            engine.slots,
            engine.context,
            time.monotonic() - started,
        )

    worker = app.Worker(
        pool="threads",
        concurrency=engine.slots,
        hostname=worker_id,
        loglevel=logging.WARNING,
        without_mingle=True,
        without_gossip=True,
        without_heartbeat=True,
        quiet=True,
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


def _quieten() -> None:
    """Leave out of the log what its reader can do nothing about."""
    # transformers warns that peft uses a name it will drop.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)
    # Containers run as root. Messages are JSON, so that none can bring code along.
    warnings.filterwarnings("ignore", category=SecurityWarning)
    if not sys.stderr.isatty():
        transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers has no types there


def _warm_up(engine: Engine) -> None:
    """Generate with each role, prompt and decoding, so that the first question does not wait for it."""
    for role in Role:
        request = Request(role, WARM_UP, Sampling(temperature=0, max_output_tokens=2))
        engine.submit(request).result()


def _say_stopped(store: Store, worker_id: str) -> None:
    try:
        store.set_worker_state(worker_id, WorkerState.STOPPED)
    except SQLAlchemyError as error:
        # It counts as gone when it has not been seen for a while.
        log.warning("the database does not answer: %s", transient.reason(error))


def _wait_for(what: str, ask: Callable[[], None], passes: Callable[[Exception], bool]) -> None:
    """Ask a server until it answers, and say now and then what for; raises what does not pass."""
    said = -SAY_INTERVAL
    while True:
        try:
            return ask()
        except Exception as error:
            if not passes(error):
                raise
            if time.monotonic() - said >= SAY_INTERVAL:
                log.warning("waiting for %s: %s", what, transient.reason(error))
                said = time.monotonic()
        time.sleep(1)  # between tries at a server that is not there
