"""Programs that are forked by `tests.fork_server`, as the tests see them."""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import connection
from pathlib import Path
from typing import IO, Any

from tests.fork_client import SERVER, ask

ROOT = Path(__file__).parents[1]
#: What programs need.
PROGRAMS = "tests.preloaded"


def start_server(*modules: str) -> str:
    """Start the server that this process and its children use, until this one ends; return its address.

    Args:
        modules: what it imports before it forks.
    """
    folder = Path(tempfile.mkdtemp(prefix="hq-"))
    os.environ[SERVER] = address = str(folder / "fork.sock")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(address)
        listener.listen(64)  # Who comes before it has imported everything waits.
        server = subprocess.Popen(
            [sys.executable, "-m", "tests.fork_server", str(listener.fileno()), *modules],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )

    def stop() -> None:
        try:
            server.communicate(timeout=60)
        except subprocess.TimeoutExpired:  # It would keep the tests from their end.
            server.kill()
            server.wait()
        shutil.rmtree(folder)

    atexit.register(stop)
    return address


def server() -> str:
    """Return the address of the server; start it if there is none yet."""
    return os.environ.get(SERVER) or start_server(PROGRAMS)


class Forked:
    """A started process, with as much of `subprocess.Popen` as the tests need."""

    def __init__(
        self,
        command: Sequence[str],
        environ: Mapping[str, str],
        namespaces: int | None = None,
        output: IO[bytes] | None = None,
    ) -> None:
        """
        Args:
            command: of the form ``python -m module argument…`` or ``python -c code argument…``.
            environ: all environment variables.
            namespaces: a process whose network and hostname it gets; its parent's if None.
            output: where it writes to; ``stdout`` has it if None.
        """
        self.stdout: IO[str] | None = None
        if output is None:
            reader, writer = os.pipe()
            # It may be killed between two bytes of a character.
            self.stdout = os.fdopen(reader, errors="replace")
        else:
            writer = os.dup(output.fileno())
        nothing = os.open(os.devnull, os.O_RDONLY)
        try:
            files = (nothing, writer, writer)
            self._connection = ask(server(), command[1:], environ, files, namespaces)
        finally:
            os.close(nothing)
            os.close(writer)
        self._lines = self._connection.makefile()
        self._lock = threading.Lock()
        self._status: int | None = None
        self.pid = int(self._lines.readline())

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        with self._lock:
            if self._status is None and connection.wait([self._connection], 0):
                self._status = int(self._lines.readline())
                self._lines.close()
                self._connection.close()
            return self._status

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end; return the exit status."""
        if self._status is None:
            connection.wait([self._connection], timeout)
        if (status := self.poll()) is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout or 0.0)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # It has just ended.
                os.kill(self.pid, number)


class Popen(Forked):
    """What takes the place of `subprocess.Popen` in a module that starts its own program."""

    def __init__(
        self, command: Sequence[str], *, env: Mapping[str, str], stdout: IO[bytes], **_: Any
    ) -> None:
        super().__init__(command, env, output=stdout)
