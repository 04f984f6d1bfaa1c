"""Starts Python programs as forks of a process that has imported already what they need.

Importing torch, transformers and peft takes longer than most tests, dozens of tests start a worker,
and each process that runs tests needs them too. What is forked is a process like any other: it has its
own session, settings and files, and runs the same module from its first line on.

``python -m tests.fork_server SOCKET MODULE…`` imports the modules and serves one inherited socket.
`tests.fork_client` says what is sent. It ends when its standard input does: with who started it.
`tests.forked_process` is what each fork becomes.
"""

from __future__ import annotations

import gc
import importlib
import os
import selectors
import signal
import socket
import sys
from contextlib import suppress

from tests import forked_process
from tests.fork_client import receive


class Server:
    """Forks a process for each connection, and ends it when its client closes the connection."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._children: dict[int, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        ended, self._wakeup = socket.socketpair()
        for end in (ended, self._wakeup):
            end.setblocking(False)
        signal.set_wakeup_fd(self._wakeup.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        self._selector.register(0, selectors.EVENT_READ)
        self._selector.register(listener, selectors.EVENT_READ, self._accept)
        self._selector.register(ended, selectors.EVENT_READ, lambda: self._reap(ended))

    def run(self) -> None:
        """Serve until the standard input ends."""
        while True:
            for key, _ in self._selector.select():
                if key.fd == 0:
                    return
                key.data()

    def close(self) -> None:
        """End all processes."""
        for pid in self._children:
            _terminate(pid)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        try:
            request, files = receive(connection)
        except EOFError:  # The client ended while it asked.
            connection.close()
            return
        if (pid := os.fork()) == 0:
            forked_process.become(request, files, self._leave_to_child)
        for file in files:
            os.close(file)
        self._children[pid] = connection
        self._selector.register(connection, selectors.EVENT_READ, lambda: self._leave(pid))
        _tell(connection, pid)

    def _leave(self, pid: int) -> None:
        """End a process whose client is gone, unless it has just ended."""
        if pid in self._children:
            self._selector.unregister(self._children[pid])
            _terminate(pid)

    def _reap(self, ended: socket.socket) -> None:
        with suppress(BlockingIOError):
            while ended.recv(4096):
                pass
        for pid in list(self._children):
            if (result := os.waitpid(pid, os.WNOHANG))[0]:
                connection = self._children.pop(pid)
                with suppress(KeyError):  # Its client is gone.
                    self._selector.unregister(connection)
                _tell(connection, os.waitstatus_to_exitcode(result[1]))
                connection.close()

    def _leave_to_child(self) -> None:
        """Close what a process that was forked does not have."""
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for connection in self._children.values():
            connection.close()
        self._selector.close()
        self._listener.close()


def _tell(connection: socket.socket, number: int) -> None:
    with suppress(OSError):  # The client is gone.
        connection.sendall(b"%d\n" % number)


def _terminate(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)


def main(descriptor: str, *modules: str) -> None:
    gc.disable()  # It would only slow the imports down: what is imported stays.
    for module in modules:
        importlib.import_module(module)
    gc.freeze()  # Later collections, here and in each fork, skip the imported objects.
    gc.enable()
    server = Server(socket.socket(fileno=int(descriptor)))
    server.run()
    server.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
