"""A TCP proxy to a server's Unix socket: a network between two processes that can be cut.

``python -m tests.proxy HOST PORT SOCKET`` is one that stays whole, as a process.
"""

from __future__ import annotations

import contextlib
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from tests.joining import join


class Proxy:
    """Listens on a port and hands everything on, both ways, until it is cut."""

    def __init__(self, target: Path, host: str = "127.0.0.1", port: int = 0) -> None:
        """
        Args:
            target: the server's socket.
            host: where to listen.
            port: where to listen; any free one if 0.
        """
        self._target = target
        self._listener = socket.create_server((host, port))
        self.port = int(self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._whole = True
        self._ends: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def cut(self) -> None:
        """Break all connections, and let no new one through."""
        with self._lock:
            self._whole = False
            for end in self._ends:
                _break(end)

    def mend(self) -> None:
        with self._lock:
            self._whole = True

    def close(self) -> None:
        self.cut()
        _break(self._listener)
        for thread in self._threads:
            join(thread)
        for end in (self._listener, *self._ends):
            end.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return  # closed
            with self._lock:
                server = socket.socket(socket.AF_UNIX)
                self._ends += [client, server]
                if not self._whole:
                    _break(client)
                    continue
                server.connect(str(self._target))
                for copy, *ends in (
                    (self._ask, client, server),
                    (_copy, server, client),
                ):
                    self._threads.append(threading.Thread(target=copy, args=ends))
                    self._threads[-1].start()

    def _passed_on(self, data: bytes, client: socket.socket) -> bool:  # noqa: ARG002 (for those that answer)
        """Whether what a client sent should reach the server."""
        return True

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        _copy(client, server, self._passed_on)


def _copy(
    source: socket.socket,
    sink: socket.socket,
    passed_on: Callable[[bytes, socket.socket], bool] = lambda _data, _source: True,
) -> None:
    with contextlib.suppress(OSError):  # cut, or gone
        while data := source.recv(65536):
            if passed_on(data, source):
                sink.sendall(data)
    for end in (source, sink):
        _break(end)


def _break(end: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it is closed already
        end.shutdown(socket.SHUT_RDWR)


if __name__ == "__main__":
    Proxy(Path(sys.argv[3]), sys.argv[1], int(sys.argv[2]))  # its thread keeps the process alive
    print("listening", flush=True)
