"""Runs one part of HelixQ in this process: the web, a worker, the background duties, a migration."""

from __future__ import annotations

import gc
import logging
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import TYPE_CHECKING

import alembic.util

import migrations
from cli.errors import MODEL_LIBRARIES, ExpectedError, UnusableModelError, unusable_data_dir
from jobs import advice, background
from jobs.database import Database
from jobs.database_engine import create_engine
from jobs.malloc import limit_arenas
from jobs.program import exit_at_once
from jobs.progress import Progress
from jobs.queue import make_app
from jobs.settings import DATA_DIR_MODE, Settings
from jobs.stop_signals import STOP_SIGNALS, StopSignals
from jobs.use_cases import keys
from jobs.use_cases.workers import Runtime

if TYPE_CHECKING:
    from worker.engine.interface import Engine

log = logging.getLogger(__name__)

#: Seconds that the duties which are running have to finish after a signal. One may wait for a lock of the database.
STOP_TIMEOUT = 20.0


def web(settings: Settings, *, after_stdin: bool = False) -> None:
    """Serve the web until a signal stops it.

    Args:
        settings: of the web.
        after_stdin: connect to Redis and the database after the end of standard input.
    """
    limit_arenas()
    from web.serve import serve

    if after_stdin:
        sys.stdin.read()
    database, progress = Database(settings.database), Progress(settings.redis)
    migrations.check(database.engine)
    progress.ping()
    for warning in [*advice.about_database(database, processes=1), *progress.advice()]:
        log.warning("%s", warning)
    if settings.auth_required and not keys.any_valid(database):
        log.warning("API keys are required, and there is none: make one with `helixq keys create`")
    progress.close()
    database.close()
    serve(settings)


def worker(settings: Settings, *, after_stdin: bool = False) -> int:
    """Run a worker until a signal stops it; return the exit status.

    Args:
        settings: of the worker.
        after_stdin: connect to Redis and the database after the end of standard input.
    """
    limit_arenas()
    from worker import main

    start = time.monotonic()
    if settings.engine == "openai":
        from worker import remote_engine

        if after_stdin:
            sys.stdin.read()
        return main.run(settings, partial(remote_engine.make_engine, settings), start)
    from worker.checkpoints import digests
    from worker.checkpoints.errors import CheckpointError
    from worker.checkpoints.references import check_folders
    from worker.phases import phase

    try:
        check_folders(settings)
    except CheckpointError as error:
        raise UnusableModelError(str(error)) from error

    # Hashing warms the page cache for loading, and runs in parallel with the imports.
    with digests.begin(settings) as hashing:
        with phase("importing PyTorch, transformers and PEFT"):
            make_engine, error_class = _import_engine()
        if after_stdin:
            sys.stdin.read()
        try:
            return main.run(settings, partial(make_engine, settings, hashing), start)
        except error_class as error:
            raise UnusableModelError(str(error)) from error
        finally:
            # Otherwise the objects outlive their libraries, and Triton reports leaks.
            gc.unfreeze()


def _import_engine() -> tuple[Callable[..., tuple[Engine, Runtime]], type[Exception]]:
    """Import and return the function that creates the engine, and the error that it raises.

    Raises:
        UnusableModelError: a library is not installed.
    """
    # Importing torch takes seconds, so other commands do not. Garbage collection would only slow it down:
    # what is imported stays.
    gc.disable()
    from worker.checkpoints.errors import CheckpointError

    try:
        from worker.local_engine import make_engine
    except ModuleNotFoundError as error:
        if error.name not in MODEL_LIBRARIES:
            raise
        raise UnusableModelError(
            f"{error.name} is not installed: pip install 'helixq[worker]', or set HELIXQ_ENGINE=openai for a "
            "server elsewhere"
        ) from error

    # Exclude the imported objects from later collections, each of which would take half a second.
    gc.freeze()
    gc.enable()
    return make_engine, CheckpointError


def maintain(settings: Settings) -> None:
    """Run the background duties until a signal stops them.

    A second signal, or `STOP_TIMEOUT`, ends the process even if a duty is still running.
    """
    limit_arenas()
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals(*STOP_SIGNALS))
        database = Database(settings.database)
        stack.callback(database.close)
        progress = Progress(settings.redis)
        stack.callback(progress.close)
        migrations.check(database.engine)
        app = make_app(settings.redis)
        threads = background.make_threads(settings, database, progress, app, model=None)
        for thread in threads:
            thread.start()
        log.info("running the background duties")
        signals.wait()
        log.info("stopping")
        deadline = time.monotonic() + STOP_TIMEOUT
        for thread in reversed(threads):
            while not thread.stop(timeout=0.1):
                if signals.count >= 2:
                    exit_at_once()
                if time.monotonic() > deadline:
                    log.warning("a duty takes too long; its transaction is rolled back")
                    exit_at_once()


def migrate(settings: Settings, target: str) -> str | None:
    """Migrate the schema to a revision; return that revision."""
    if settings.database_url is None:
        try:
            settings.data_dir.mkdir(mode=DATA_DIR_MODE, parents=True, exist_ok=True)
        except OSError as error:
            raise unusable_data_dir(settings.data_dir, error) from error
    engine = create_engine(settings.database)
    try:
        migrations.migrate(engine, target)
        return migrations.current(engine)
    except alembic.util.CommandError as error:
        raise ExpectedError(f"cannot migrate to {target!r}: {error}") from error
    finally:
        engine.dispose()
