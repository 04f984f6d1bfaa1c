"""Lookups of several threads, together in one query.

With hundreds of polls a second, several wait for the database at any time. A query costs the same for one
row and for a dozen, so those that arrive while one runs share the next one. Each sees what was committed
before it was asked for.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Generic, TypeVar

#: Keys of one query. More wait for the next one.
MAX_KEYS = 100

Key = TypeVar("Key")
Value = TypeVar("Value")


class Lookups(Generic[Key, Value]):
    """Lookups of one kind. Threads share it."""

    def __init__(self, fetch: Callable[[list[Key]], Mapping[Key, Value]]) -> None:
        """
        Args:
            fetch: runs the query; returns what it finds by key. Only one thread at a time calls it.
        """
        self._fetch = fetch
        self._lock = threading.Lock()
        self._waiting: list[_Lookup[Key, Value]] = []
        self._running = False

    def get(self, key: Key) -> Value | None:
        """Return what a query that begins now finds for a key; None for nothing.

        Raises:
            Exception: what ``fetch`` raises, in all threads that share the query.
        """
        lookup: _Lookup[Key, Value] = _Lookup(key)
        with self._lock:
            self._waiting.append(lookup)
            runs, self._running = not self._running, True
        if not runs:
            lookup.woken.acquire()
        if not lookup.done:
            self._run(lookup)
        if lookup.error is not None:
            raise lookup.error
        return lookup.value

    def _run(self, own: _Lookup[Key, Value]) -> None:
        """Run the query for all that wait, then have one of those that came meanwhile run the next one."""
        with self._lock:
            batch, self._waiting = self._waiting[:MAX_KEYS], self._waiting[MAX_KEYS:]
        found: Mapping[Key, Value] = {}
        error: BaseException | None = None
        try:
            found = self._fetch(list(dict.fromkeys(lookup.key for lookup in batch)))
        except BaseException as caught:  # noqa: BLE001 (all of them raise it)
            error = caught
        with self._lock:
            following = self._waiting[0] if self._waiting else None
            self._running = following is not None
        if following is not None:
            following.woken.release()
        for lookup in batch:
            lookup.value, lookup.error, lookup.done = found.get(lookup.key), error, True
            if lookup is not own:
                lookup.woken.release()


class _Lookup(Generic[Key, Value]):
    """A key that a thread looks up."""

    __slots__ = ("done", "error", "key", "value", "woken")

    def __init__(self, key: Key) -> None:
        self.key = key
        self.value: Value | None = None
        self.error: BaseException | None = None
        self.done = False
        # A lock costs less than an event.
        self.woken = threading.Lock()
        self.woken.acquire()
