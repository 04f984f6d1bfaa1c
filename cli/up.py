"""`helixq up`: Redis, database, worker and web in one program that Ctrl-C stops."""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import NoReturn, TypeVar

from cli import embedded_redis
from cli.children import START_INTERVAL, WATCH_INTERVAL, Child
from cli.errors import ExpectedError, unusable_data_dir
from jobs import demo_model, web_address
from jobs.program import PROGRAM, exit_at_once
from jobs.settings import DATA_DIR_MODE, Settings
from jobs.stop_signals import STOP_SIGNALS, StopSignals
from worker.checkpoints.references import check_folders

log = logging.getLogger(__name__)

T = TypeVar("T")

#: Seconds before a part that exited is restarted.
RESTART_DELAY = 1.0
DEMO_GREETING = (
    f'the demo model {demo_model.ABILITY}; ask it, for example: "{demo_model.EXAMPLES[0]}"'
)


class _StopError(Exception):
    """A signal requested to stop."""


class _StopWhileCallingError(_StopError):
    """The same, while a server was called that has not responded."""


def run(settings: Settings) -> int:
    """Run all parts until a signal asks to stop; return the exit status."""
    web_address.bind(settings).close()  # To fail at once if it cannot.
    check_installed(settings)
    try:
        _run(settings)
    except _StopWhileCallingError:
        exit_at_once()  # A migration that has not ended is rolled back.
    except _StopError:
        pass
    return 0


def _run(settings: Settings) -> NoReturn:
    """Run all parts.

    Raises:
        _StopError: a signal requested to stop; they have stopped.
    """
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals(*STOP_SIGNALS))
        stack.enter_context(_data_dir(settings.data_dir))
        running: list[Child] = []
        try:
            _start_all(settings, running, signals, stack)
            log.info("HelixQ is ready: %s (press Ctrl-C to stop)", settings.url)
            if settings.base_model == demo_model.BASE and settings.engine != "openai":
                log.info("%s", DEMO_GREETING)
            while True:
                _restart(running, signals)
                _pause(signals, WATCH_INTERVAL)
        except _StopError:
            log.info("stopping")
            raise
        finally:
            for part in reversed(running):
                part.stop(signals)
            log.info("stopped")


def _start_all(
    settings: Settings, running: list[Child], signals: StopSignals, stack: ExitStack
) -> None:
    """Start all parts at once. Worker and web import, and then wait for those that they need."""
    if settings.redis_url is None:
        running.append(embedded_redis.start(settings, stack))
    worker, web = _helixq("worker"), _helixq("web")
    for part in (worker, web):
        part.start(held=True)
        running.append(part)
    # Imported while the parts import, since it takes a second.
    from cli import parts
    from jobs.database import Database
    from jobs.progress import Progress
    from jobs.use_cases import workers

    def until(condition: Callable[[], object]) -> None:
        while not _aside(condition, signals):
            for part in running:
                if part.status is not None and part.recover():
                    part.start()
                part.check_runs()
            _pause(signals, START_INTERVAL)

    progress = Progress(settings.redis)
    stack.callback(progress.close)
    if settings.redis_url is None:
        until(lambda: embedded_redis.answers(progress))
    _aside(progress.ping, signals)
    revision = _aside(partial(parts.migrate, settings, "head"), signals)
    log.info("the database schema is at revision %s", revision)
    worker.release()
    database = Database(settings.database)
    stack.callback(database.close)
    host = socket.gethostname()
    # The web checks questions against the model that the starting worker registers.
    until(lambda: workers.find_by_process(database, host, worker.pid))
    web.release()
    until(lambda: _listens(settings))
    log.info("the web is at %s; questions wait while the model loads", settings.url)
    until(lambda: any(w.pid == worker.pid and w.host == host for w in workers.list_ready(database)))


def _helixq(command: str) -> Child:
    return Child(f"the {command}", [*PROGRAM, command, "--after-stdin"])


def check_installed(settings: Settings) -> None:
    """Check that all parts can start.

    Raises:
        ExpectedError: a package is not installed.
        CheckpointError: a folder of the settings is not there.
    """
    if settings.redis_url is None:
        embedded_redis.find_program()
    if settings.engine != "openai":
        check_folders(settings)
        for name in ("torch", "transformers", "peft"):
            if importlib.util.find_spec(name) is None:
                raise ExpectedError(
                    f"{name} is not installed, so no question can be answered here: pip install 'helixq[up]', or "
                    "set HELIXQ_ENGINE=openai for a server elsewhere"
                )


def _pause(signals: StopSignals, seconds: float) -> None:
    """Wait for something that has no event: a process, a row, a port.

    Raises:
        _StopError: a signal was received.
    """
    if signals.wait(seconds):
        raise _StopError


def _aside(call: Callable[[], T], signals: StopSignals) -> T:
    """Call a server on a thread of its own, and return the result: a signal need not wait for a server that hangs.

    The thread is a daemon: Python waits for those of an executor at its end.

    Raises:
        _StopWhileCallingError: a signal was received. The call goes on until this process ends.
        Exception: what the call raised.
    """
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(call())
        except BaseException as error:  # noqa: BLE001 (whoever waits for the outcome gets it)
            outcome.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    while not wait([outcome], START_INTERVAL).done:
        if signals.count:
            raise _StopWhileCallingError
    return outcome.result()


def _restart(running: list[Child], signals: StopSignals) -> None:
    """Restart parts that exited; the database holds the state of their work."""
    for part in running:
        if part.status is not None:
            log.warning("%s exited with status %s; restarting it", part.name, part.status)
            _pause(signals, RESTART_DELAY)  # one that dies at once should not fill the log
            part.recover()
            part.start()


def _listens(settings: Settings) -> bool:
    host, port = settings.url.removeprefix("http://").rsplit(":", 1)
    with suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), timeout=1):
        return True
    return False


@contextmanager
def _data_dir(folder: Path) -> Iterator[None]:
    """Lock the data folder: two programs in one folder would share a Redis socket."""
    try:
        folder.mkdir(mode=DATA_DIR_MODE, parents=True, exist_ok=True)
        lock = (folder / "lock").open("w")
    except OSError as error:
        raise unusable_data_dir(folder, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ExpectedError(
                f"another `helixq up` uses {folder}: stop it, or set HELIXQ_DATA_DIR and HELIXQ_PORT"
            ) from error
        yield
