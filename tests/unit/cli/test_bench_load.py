"""The load of the benchmarks: it asks no more than it is to, and no less."""

from __future__ import annotations

import itertools
import socket
import threading
from contextlib import ExitStack

from cli.bench import load
from tests.joining import join

CONNECTIONS = 4
MAXIMUM = CONNECTIONS - 1


def test_no_more_requests_are_sent_than_the_maximum() -> None:
    """Each reply waits for all of them, so that replies arrive together."""
    with ExitStack() as stack, socket.create_server(("127.0.0.1", 0)) as listener:

        def reply() -> None:
            connections = [stack.enter_context(listener.accept()[0]) for _ in range(CONNECTIONS)]
            for connection in connections[:MAXIMUM]:
                connection.recv(1000)
            for connection in connections[:MAXIMUM]:
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")

        server = threading.Thread(target=reply)
        server.start()
        requests = iter([b"GET / HTTP/1.1\r\n\r\n"] * MAXIMUM)
        port = listener.getsockname()[1]
        done = load.run(
            [port],
            requests,
            status=200,
            connections=CONNECTIONS,
            seconds=60,
            maximum=MAXIMUM,
        )
        join(server)
    assert len(done.delays) == MAXIMUM


def test_the_first_reply_is_waited_for() -> None:
    """A busy machine may take longer for it than the load should."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reply() -> None:
            with listener.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
                connection.recv(1000)

        server = threading.Thread(target=reply)
        server.start()
        requests = itertools.repeat(b"GET / HTTP/1.1\r\n\r\n")
        port = listener.getsockname()[1]
        done = load.run([port], requests, status=200, connections=1, seconds=0)
        join(server)
    assert len(done.delays) == 1
    assert done.quantile(0.5) > 0
