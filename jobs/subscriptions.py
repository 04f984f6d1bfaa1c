"""Subscribers of Redis streams: what each has not taken yet, and which of them run at the same time."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Mapping

#: Subscribers with text that run at the same time. Python runs one thread at a time: those that wait for it wake up
#: every 5 ms to ask for it, and interrupt the one that runs.
TURNS = 2
#: Seconds after which all others run too: some may wait for the database or their clients, or for more requests than
#: Python can run at once.
TURNS_TIMEOUT = 0.05

Fields = Mapping[str, str]
#: The id of a stream's entry: milliseconds, and a sequence number within them.
EntryId = tuple[int, int]


class Subscription:
    """The entries of one stream that its subscriber has not taken yet."""

    def __init__(self, turns: Turns) -> None:
        # A lock of its own: news wake hundreds of subscribers at the same time.
        self._changed = threading.Condition(threading.Lock())
        self._entries: list[Fields] = []
        self._away = False
        #: Whether the subscriber waits for entries.
        self._waiting = False
        self._turns = turns
        #: When it was told of text last.
        self.told_at = 0.0
        #: Whether it is in the line of those that have text.
        self.in_line = False
        #: The id of the last entry that was received.
        self.cursor: EntryId = (0, 0)

    def take(self, timeout: float) -> tuple[list[Fields], bool]:
        """Take the entries, or wait for some up to ``timeout`` seconds.

        Returns:
            the entries, and whether Redis was away since the last call.
        """
        self._turns.pass_on()
        with self._changed:
            if not (self._entries or self._away):
                self._waiting = True
                self._changed.wait(timeout)
                self._waiting = False
            entries, self._entries = self._entries, []
            away, self._away = self._away, False
        return entries, away

    def wake(self) -> bool:
        """Wake the subscriber if it waits and has entries; return whether it did.

        One that does not wait takes its entries when it comes back. One that came back while it stood in the
        line has taken them already.
        """
        with self._changed:
            if not (self._waiting and self._entries):
                return False
            self._changed.notify_all()
            return True

    def put(self, entries: list[tuple[EntryId, Fields]]) -> bool:
        """Add the entries that are new; return whether the subscriber should be woken at once: not by text alone.

        Only the listener's thread calls it.
        """
        new = [fields for entry_id, fields in entries if entry_id > self.cursor]
        self.cursor = max(self.cursor, entries[-1][0])
        with self._changed:
            self._entries += new
        return any("text" not in fields for fields in new)

    def set_away(self) -> None:
        """Tell the subscriber that Redis is away."""
        with self._changed:
            self._away = True
            self._changed.notify_all()


class Turns:
    """The line of subscribers that have text: a few run, and each that is done wakes the next one. Thread-safe."""

    def __init__(self) -> None:
        self._line: deque[Subscription] = deque()
        #: Since when there is somebody in the line.
        self._since = 0.0

    def __bool__(self) -> bool:
        return bool(self._line)

    def add(self, subscriptions: Iterable[Subscription], now: float) -> None:
        """Put subscribers at the end, and let the first ones run. The listener calls it in each turn."""
        if not self._line:
            self._since = now
        for subscription in subscriptions:
            if not subscription.in_line:
                subscription.in_line = True
                self._line.append(subscription)
        overdue = now - self._since > TURNS_TIMEOUT
        for _ in range(len(self._line) if overdue else TURNS):
            self.pass_on()

    def pass_on(self) -> None:
        """Wake the next one that waits."""
        # Looked at first: most calls find nobody.
        while self._line:
            try:
                subscription = self._line.popleft()
            except IndexError:  # Another thread was faster.
                return
            subscription.in_line = False
            if subscription.wake():
                return
