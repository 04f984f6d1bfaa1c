"""The loop that waits for connections."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from tests.joining import join
from web import event_loop
from web.event_loop import EventLoop

#: Seconds within which what is expected happens.
SOON = 30


class Connection:
    """A connection that counts how often it is asked, with the attributes of waitress's."""

    accepting = False

    def __init__(self) -> None:
        self.socket, self.client = socket.socketpair()
        self.reads = True
        self.writes = False
        self.asked = 0
        self.received: list[bytes] = []

    def readable(self) -> bool:
        self.asked += 1
        return self.reads

    def writable(self) -> bool:
        return self.writes

    def handle_read_event(self) -> None:
        self.received.append(self.socket.recv(100))

    def handle_write_event(self) -> None:
        self.socket.send(b"reply")
        self.writes = False

    def close(self) -> None:
        self.socket.close()
        self.client.close()


class Connections:
    """Open connections, and the loop that waits for them."""

    def __init__(self) -> None:
        self.open: dict[int, Any] = {}
        self.wakes, self._wake = socket.socketpair()
        self.loop = EventLoop(self.open, lambda: self._wake.send(b"x"))

    def add(self) -> tuple[int, Connection]:
        connection = Connection()
        descriptor = connection.socket.fileno()
        self.open[descriptor] = connection
        self.loop.ask(descriptor)
        return descriptor, connection

    def close(self) -> None:
        for each in self.open.values():
            each.close()
        self.wakes.close()
        self._wake.close()


@pytest.fixture
def connections() -> Iterator[Connections]:
    made = Connections()
    yield made
    made.close()


def test_a_turn_asks_only_connections_that_changed(
    connections: Connections, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All are asked once a second; here no time passes."""
    now = 100.0
    monkeypatch.setattr(event_loop, "time", SimpleNamespace(monotonic=lambda: now))
    added = [connections.add()[1] for _ in range(20)]
    connections.loop.run_once(0)
    before = [each.asked for each in added]
    for _ in range(3):
        added[4].client.send(b"request")
        connections.loop.run_once(SOON)
    connections.loop.run_once(0)
    assert added[4].received == [b"request"] * 3
    asked = [each.asked - then for each, then in zip(added, before, strict=True)]
    assert asked == [3 * (number == 4) for number in range(20)]
    now += event_loop.ASK_ALL_INTERVAL
    connections.loop.run_once(0)
    assert [each.asked - then for each, then in zip(added, before, strict=True)] == [
        times + 1 for times in asked
    ]


def test_a_thread_has_the_loop_ask_a_connection(connections: Connections) -> None:
    descriptor, connection = connections.add()
    connection.reads = False
    connections.loop.run_once(0)
    connection.client.send(b"early")
    connections.loop.run_once(0)
    assert not connection.received, "it did not want to read"
    connection.reads = connection.writes = True
    thread = threading.Thread(target=connections.loop.ask_now, args=(descriptor,))
    thread.start()
    join(thread)
    assert connections.wakes.recv(10) == b"x"
    connections.loop.ask_now(descriptor)
    connections.wakes.setblocking(False)
    with pytest.raises(BlockingIOError):
        connections.wakes.recv(10)  # it was woken already
    connections.loop.run_once(SOON)
    assert connection.received == [b"early"]
    assert connection.client.recv(10) == b"reply"
    connections.loop.ask_now(descriptor)
    assert connections.wakes.recv(10) == b"x", "once in each turn"


def test_a_descriptor_that_is_used_again_is_the_new_connection(connections: Connections) -> None:
    descriptor, old = connections.add()
    connections.loop.run_once(0)
    connections.loop.forget(descriptor)
    del connections.open[descriptor]
    old.close()
    new_descriptor, new = connections.add()
    if new_descriptor != descriptor:  # another thread took the number
        os.dup2(new.socket.fileno(), descriptor)
        new.socket.close()
        new.socket = socket.socket(fileno=descriptor)
        connections.open[descriptor] = connections.open.pop(new_descriptor)
        connections.loop.ask(descriptor)
    new.client.send(b"hello")
    connections.loop.run_once(SOON)
    assert (old.received, new.received) == ([], [b"hello"])


def test_a_client_that_leaves_is_noticed(connections: Connections) -> None:
    _, connection = connections.add()
    connection.client.close()
    connections.loop.run_once(SOON)
    assert connection.received == [b""]
