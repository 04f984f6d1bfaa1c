"""Starts programs as forks of a process that has imported already what they need.

Importing torch, transformers and peft takes longer than most tests, and dozens of tests start a
worker. What is forked is a process like any other: it has its own session, settings and output, and
runs the same module from its first line on. The process that forks is multiprocessing's fork server.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import runpy
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from multiprocessing import connection
from multiprocessing.connection import Connection

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["tests.preloaded"])
#: Held while an exit status is read. The fork server sends it once, and each start polls all other
#: processes: of two threads that read a status at the same time, one would get 255.
LOCK = threading.Lock()


class Forked:
    """A started process, with as much of `subprocess.Popen` as the tests need."""

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str], namespaces: int | None = None
    ) -> None:
        """
        Args:
            command: of the form ``python -m module argument…``.
            environ: all environment variables.
            namespaces: a process whose network and hostname it gets; its parent's if None.
        """
        _, flag, module, *arguments = command
        assert flag == "-m"
        reader, writer = CONTEXT.Pipe(duplex=False)
        with reader, writer:
            self._process = CONTEXT.Process(
                target=become,
                args=(module, arguments, dict(environ), writer, namespaces),
                daemon=True,
            )
            with LOCK:
                self._process.start()
            self.stdout = os.fdopen(os.dup(reader.fileno()))
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        with LOCK:
            return self._process.exitcode

    def wait(self, timeout: float) -> int:
        """Wait for the end; return the exit status."""
        connection.wait([self._process.sentinel], timeout)
        if (status := self.poll()) is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            with suppress(ProcessLookupError):  # It has just ended.
                os.kill(self.pid, number)


def become(
    module: str,
    arguments: Sequence[str],
    environ: Mapping[str, str],
    output: Connection,
    namespaces: int | None,
) -> None:
    """Run a module as if this process had been started for it."""
    os.setsid()
    if namespaces is not None:
        enter(namespaces)
    with output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # it is a text file
    os.environ.clear()
    os.environ.update(environ)
    sys.argv[1:] = arguments
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def enter(process: int) -> None:
    """Go over to the network and the hostname of a process."""
    libc = ctypes.CDLL(None, use_errno=True)
    kinds = ["net", "uts"] if os.geteuid() == 0 else ["user", "net", "uts"]
    # All are opened first: in the user namespace, the others would be another's.
    files = [os.open(f"/proc/{process}/ns/{kind}", os.O_RDONLY) for kind in kinds]
    for file in files:
        if libc.setns(file, 0) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(file)
