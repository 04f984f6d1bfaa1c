"""A load of HTTP requests over kept connections, cheap enough to share two cores with what it measures."""

from __future__ import annotations

import itertools
import json
import re
import selectors
import socket
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from cli.bench import trends
from cli.errors import ExpectedError

#: Maximum seconds for a reply.
TIMEOUT = 60.0
_LENGTH = re.compile(rb"\r\ncontent-length: (\d+)\r\n", re.IGNORECASE)


@dataclass
class Load:
    """What came of a load."""

    seconds: float
    #: Of each request, in order of their ends.
    delays: list[float]

    @property
    def rate(self) -> float:
        """Requests a second."""
        return len(self.delays) / self.seconds

    def quantile(self, share: float) -> float:
        """Return the delay that a share of the requests did not exceed."""
        return trends.quantile(self.delays, share)


@dataclass
class _Connection:
    socket: socket.socket
    #: When the request that was sent last was due.
    due: float = 0.0
    received: bytearray = field(default_factory=bytearray)


def request(method: str, path: str, body: dict[str, object] | None = None) -> bytes:
    """Return a whole request, with a body in JSON if there is one."""
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
    data = b"" if body is None else json.dumps(body).encode()
    if data:
        head += f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    return head.encode() + b"\r\n" + data


def run(
    ports: Sequence[int],
    requests: Iterator[bytes],
    *,
    status: int,
    connections: int,
    seconds: float,
    maximum: int | None = None,
    rate: float | None = None,
) -> Load:
    """Send requests to webs on this machine: each connection sends the next one when it has a reply.

    With ``rate``, requests are due at even intervals, whatever the replies take, and delays count from then.

    Args:
        ports: of the webs, which share the connections evenly.
        requests: whole requests, without end.
        status: of each reply.
        connections: the number of requests that are open at any time.
        seconds: how long; until the first reply if that takes longer.
        maximum: the number of replies after which it ends sooner.
        rate: the number of requests that are due each second; None for as many as the webs answer.

    Raises:
        ExpectedError: a reply has another status, or none comes.
    """
    expected = b"HTTP/1.1 %d " % status
    delays: list[float] = []
    idle: deque[_Connection] = deque()
    with selectors.DefaultSelector() as selector:
        for port in itertools.islice(itertools.cycle(ports), connections):
            connection = _Connection(socket.create_connection(("127.0.0.1", port)))
            selector.register(connection.socket, selectors.EVENT_READ, connection)
            idle.append(connection)
        sent = 0
        start = time.perf_counter()
        # Several replies may arrive together: no more are asked for than are wanted. On a busy machine, the first one
        # may take longer than all should.
        while (now := time.perf_counter()) - start < seconds or not delays:
            if len(delays) == maximum:
                break
            timeout = TIMEOUT
            while idle and sent != maximum:
                due = now if rate is None else start + sent / rate
                if due > now:
                    timeout = due - now
                    break
                _send(idle.popleft(), next(requests), due)
                sent += 1
            ready = selector.select(timeout)
            if not ready and timeout == TIMEOUT:
                raise ExpectedError(f"the web did not reply within {TIMEOUT:g} seconds")
            for connection in (key.data for key, _ in ready):
                if _receive(connection, expected):
                    delays.append(time.perf_counter() - connection.due)
                    idle.append(connection)
        for key in list(selector.get_map().values()):
            key.data.socket.close()
    return Load(now - start, delays)


def _send(connection: _Connection, request: bytes, due: float) -> None:
    connection.received.clear()
    connection.due = due
    connection.socket.sendall(request)


def _receive(connection: _Connection, expected: bytes) -> bool:
    """Receive a part of a reply, which should begin as expected; return whether it is whole."""
    data = connection.socket.recv(1 << 18)
    if not data:
        raise ExpectedError("the web closed a connection")
    connection.received += data
    head, separator, body = connection.received.partition(b"\r\n\r\n")
    if not separator:
        return False
    length = _LENGTH.search(head + b"\r\n")
    if len(body) < (int(length[1]) if length else 0):
        return False
    if not head.startswith(expected):
        reply = connection.received[:200].decode(errors="replace")
        raise ExpectedError(f"the web replied with something else: {reply}")
    return True
