"""Starts workers as forks of a process that has imported already what they need.

Importing torch, transformers and peft takes longer than most tests, and dozens of tests start a
worker. What is forked is a process like any other: it has its own session, settings and output, and
runs the same module from its first line on.

``python -m tests.forked SOCKET`` is the process that forks. A client connects, sends a command's
module, arguments and environment as one JSON object together with the file for its output, and is
sent the process's number and, when it has ended, its exit status: two decimal lines.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import select
import selectors
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

#: What is imported before any fork.
PRELOADED = ("cli.main", "worker.main")
#: Bytes that a request may have.
MOST = 2**20


@dataclass(frozen=True)
class Request:
    """What a fork is to run."""

    module: str
    arguments: list[str]
    environ: dict[str, str]
    #: File descriptor for what it prints.
    output: int

    def send(self, connection: socket.socket) -> None:
        body = {name: value for name, value in vars(self).items() if name != "output"}
        socket.send_fds(connection, [json.dumps(body).encode() + b"\n"], [self.output])

    @classmethod
    def receive(cls, connection: socket.socket) -> Request:
        data, [output], *_ = socket.recv_fds(connection, MOST, 1)
        while not data.endswith(b"\n"):
            data += connection.recv(MOST)
        return cls(**json.loads(data), output=output)


class Forked:
    """A started process, with as much of `subprocess.Popen` as the tests need."""

    def __init__(self, server: Path, command: Sequence[str], environ: Mapping[str, str]) -> None:
        """
        Args:
            server: the forking process's socket.
            command: of the form ``python -m module argument…``.
            environ: all environment variables.
        """
        _, flag, module, *arguments = command
        assert flag == "-m"
        out, to = os.pipe()
        self.stdout: IO[str] = os.fdopen(out)
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(str(server))
        Request(module, arguments, dict(environ), to).send(self._connection)
        os.close(to)
        self._replies = self._connection.makefile("r")
        self.pid = int(self._replies.readline())
        self.returncode: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, or None while it runs."""
        return self._end(0)

    def wait(self, timeout: float) -> int:
        """Wait for the end; return the exit status."""
        status = self._end(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(str(self.pid), timeout)
        return status

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def _end(self, timeout: float) -> int | None:
        if self.returncode is None and select.select([self._connection], [], [], timeout)[0]:
            self.returncode = int(self._replies.readline())
            self._replies.close()
            self._connection.close()
        return self.returncode


def serve(path: str) -> Request | None:
    """Fork on request until the standard input ends; return in every fork, with its request."""
    for name in PRELOADED:
        importlib.import_module(name)
    with selectors.DefaultSelector() as selector, socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        selector.register(server, selectors.EVENT_READ)
        selector.register(sys.stdin, selectors.EVENT_READ)
        print("ready", flush=True)
        while True:
            for key, _ in selector.select():
                if key.fileobj is sys.stdin:
                    return None
                if key.fileobj is server:
                    connection, _ = server.accept()
                    request = Request.receive(connection)
                    pid = os.fork()
                    if not pid:
                        connection.close()
                        for other in [k for k in selector.get_map().values() if k.data]:
                            os.close(other.fd)
                            other.data[1].close()
                        return request
                    os.close(request.output)
                    connection.sendall(b"%d\n" % pid)
                    selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (pid, connection))
                else:
                    pid, connection = key.data
                    _, status = os.waitpid(pid, 0)
                    connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))
                    connection.close()
                    selector.unregister(key.fileobj)
                    os.close(key.fd)


def become(request: Request) -> None:
    """Run a module as if this process had been started for it."""
    os.setsid()
    with Path(os.devnull).open() as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(request.output, 1)
    os.dup2(request.output, 2)
    os.close(request.output)
    os.environ.clear()
    os.environ.update(request.environ)
    sys.argv[1:] = request.arguments
    runpy.run_module(request.module, run_name="__main__", alter_sys=True)


if __name__ == "__main__" and (request := serve(sys.argv[1])):
    become(request)
