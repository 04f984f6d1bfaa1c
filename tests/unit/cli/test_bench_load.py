"""The load of the benchmarks: it ends when it has its replies."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack

from cli.bench import load

CONNECTIONS = 4


def test_replies_that_come_together_may_exceed_the_maximum() -> None:
    replied = threading.Event()

    def requests() -> Iterator[bytes]:
        """Have the last request wait until there are replies on all connections."""
        for number in range(CONNECTIONS):
            if number == CONNECTIONS - 1:
                replied.wait()
            yield b"GET / HTTP/1.1\r\n\r\n"
        raise AssertionError("it has its replies, and asks again")

    with ExitStack() as stack, socket.create_server(("127.0.0.1", 0)) as listener:

        def reply() -> None:
            for _ in range(CONNECTIONS):
                connection = stack.enter_context(listener.accept()[0])
                connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            replied.set()

        server = threading.Thread(target=reply)
        server.start()
        done = load.run(
            [listener.getsockname()[1]],
            requests(),
            status=200,
            connections=CONNECTIONS,
            seconds=60,
            maximum=CONNECTIONS - 1,
        )
        server.join()
    assert len(done.delays) == CONNECTIONS
