"""The loop that waits for connections.

Waitress's own loop asks each open connection in each turn what to wait for, and passes all of that to the
system, although most connections have not changed. Here the cost of a turn depends on the connections that
have changed, not on how many are open.
"""

from __future__ import annotations

import select
import selectors
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from waitress import wasyncore

#: Seconds between two turns that ask all connections, in case one has changed without a call of `EventLoop.ask`.
ASK_ALL_INTERVAL = 1.0

_POLL_EVENTS = {
    selectors.EVENT_READ: select.POLLIN,
    selectors.EVENT_WRITE: select.POLLOUT,
    selectors.EVENT_READ | selectors.EVENT_WRITE: select.POLLIN | select.POLLOUT,
}


class Connection(Protocol):
    """What the loop asks a connection, as waitress's `wasyncore.dispatcher` answers it."""

    accepting: bool

    def readable(self) -> bool: ...
    def writable(self) -> bool: ...


class EventLoop:
    """Waits until connections can be read or written, and has them do it."""

    def __init__(self, connections: Mapping[int, Connection], wake: Callable[[], object]) -> None:
        """
        Args:
            connections: those that are open, by file descriptor. The thread that runs the loop opens and
                closes them.
            wake: ends the wait of the loop. Any thread may call it.
        """
        self._connections = connections
        self._wake = wake
        #: Whether it was called since the loop began its last turn.
        self._woken = False
        self._selector = selectors.DefaultSelector()
        #: The connections that the selector knows, and which events it waits for.
        self._known: dict[int, tuple[Connection, int]] = {}
        self._changed: deque[int] = deque()
        self._ask_all_at = 0.0

    def ask(self, descriptor: int) -> None:
        """Ask a connection in the next turn what to wait for."""
        self._changed.append(descriptor)

    def ask_now(self, descriptor: int) -> None:
        """Do the same from another thread, and begin the next turn now."""
        self._changed.append(descriptor)
        if not self._woken:
            self._woken = True
            self._wake()

    def forget(self, descriptor: int) -> None:
        """Wait no longer for a connection that is about to be closed."""
        if self._known.pop(descriptor, None) is not None:
            self._selector.unregister(descriptor)

    def run_once(self, timeout: float) -> None:
        """Run one turn: wait until a connection is ready, then read and write.

        Args:
            timeout: the maximum number of seconds to wait.
        """
        # Before all else: what a thread adds after this line wakes the loop again, and what came earlier is handled below.
        self._woken = False
        now = time.monotonic()
        if now >= self._ask_all_at:
            self._ask_all_at = now + ASK_ALL_INTERVAL
            self._changed.extend(self._connections)
        while self._changed:
            self._update(self._changed.popleft())
        for key, events in self._selector.select(timeout):
            connection = self._connections.get(key.fd)
            if connection is not None:
                wasyncore.readwrite(connection, _POLL_EVENTS[events])
                self.ask(key.fd)

    def _update(self, descriptor: int) -> None:
        """Ask a connection what to wait for, and wait for that."""
        connection = self._connections.get(descriptor)
        if connection is None:
            return  # It was closed.
        events = selectors.EVENT_READ if connection.readable() else 0
        if connection.writable() and not connection.accepting:
            events |= selectors.EVENT_WRITE
        known, before = self._known.get(descriptor, (None, 0))
        if known is connection and events == before:
            return
        if known is connection and events:
            self._selector.modify(descriptor, events)
        else:
            self.forget(descriptor)
            if events:
                self._selector.register(descriptor, events)
        if events:
            self._known[descriptor] = connection, events
