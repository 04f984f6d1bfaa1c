"""A thread that does not end fails its test, with the place where it waits."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.joining import join, shut_down
from tests.servers import PATIENCE


def test_a_thread_that_hangs_is_named_with_its_place() -> None:
    released = threading.Event()

    def hang() -> None:
        released.wait()

    thread = threading.Thread(target=hang, name="hanging", daemon=True)
    thread.start()
    with pytest.raises(AssertionError, match=r"(?s)^hanging has not ended within 0\.1 .*in hang"):
        join(thread, limit=0.1)
    released.set()
    join(thread)


def test_a_request_that_hangs_is_named_with_its_place() -> None:
    released, began = threading.Event(), threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def handle(self) -> None:
            began.set()
            released.wait(PATIENCE)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = False
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    with socket.create_connection(("127.0.0.1", server.server_port)):
        assert began.wait(PATIENCE)
        with pytest.raises(AssertionError, match=r"(?s) has not ended within 0\.1 .*in handle"):
            shut_down(server, thread, limit=0.1)
    assert not thread.is_alive()
    released.set()
    shut_down(server, thread)
