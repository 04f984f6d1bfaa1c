"""Many Redis streams read over one connection, by one thread for all others."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import redis

log = logging.getLogger(__name__)

#: Seconds between tries while Redis is away.
POLL = 0.5
#: Seconds of one read without news.
BLOCK = 1.0
#: Seconds after which Redis forgets the stream that wakes a process which is gone.
WAKE_EXPIRY = 3600

Fields = Mapping[str, str]
#: What an entry of a stream is called, as two numbers: milliseconds, and a count within them.
EntryId = tuple[int, int]


class Entries:
    """What came on one stream and was not taken yet."""

    def __init__(self, lock: threading.Lock) -> None:
        self._news = threading.Condition(lock)
        self._came: list[Fields] = []
        self._away = False
        #: The last entry that came.
        self.cursor: EntryId = (0, 0)

    def take(self, seconds: float) -> tuple[list[Fields], bool]:
        """Take the entries, waiting for some if there are none, and whether Redis was away."""
        with self._news:
            if not (self._came or self._away):
                self._news.wait(seconds)
            came, self._came = self._came, []
            away, self._away = self._away, False
        return came, away

    # --- the listener's thread, which holds the lock ---------------------------------

    def put(self, entries: list[tuple[EntryId, Fields]]) -> None:
        if new := [fields for entry, fields in entries if entry > self.cursor]:
            self._came += new
            self.cursor = entries[-1][0]
            self._news.notify_all()

    def tell_away(self) -> None:
        self._away = True
        self._news.notify_all()


class Listener:
    """Reads all streams that somebody follows here. Threads may share it."""

    def __init__(self, client: redis.Redis) -> None:
        """
        Args:
            client: decodes replies, and waits for them for longer than `BLOCK`.
        """
        self._redis = client
        self._lock = threading.Lock()
        self._wanted = threading.Condition(self._lock)
        self._followed: dict[str, list[Entries]] = {}
        self._stopped = False
        self._away = False
        self._thread: threading.Thread | None = None
        #: A stream of this process: an entry ends the read that waits, so that it goes on with others.
        self._wake_key = f"helixq:wake:{secrets.token_hex(8)}"
        self._woken: EntryId = (0, 0)

    @contextmanager
    def follow(self, key: str) -> Iterator[Entries]:
        """Follow a stream from its start."""
        entries = Entries(self._lock)
        with self._lock:
            self._followed.setdefault(key, []).append(entries)
            if self._thread is None:
                self._thread = threading.Thread(target=self._serve, name="listener", daemon=True)
                self._thread.start()
            self._wanted.notify()
        self._wake()
        try:
            yield entries
        finally:
            with self._lock:
                self._followed[key].remove(entries)
                if not self._followed[key]:
                    del self._followed[key]

    def close(self) -> None:
        with self._lock:
            self._stopped = True
            self._wanted.notify()
        if self._thread is not None:
            self._wake()
            self._thread.join()

    def _wake(self) -> None:
        if self._away:
            return  # it is not reading
        with suppress(redis.RedisError), self._redis.pipeline(transaction=False) as pipe:
            pipe.xadd(self._wake_key, {"wake": "1"}, maxlen=1)
            pipe.expire(self._wake_key, WAKE_EXPIRY)
            pipe.execute()

    # --- the listener's thread --------------------------------------------------------

    def _serve(self) -> None:
        while True:
            with self._lock:
                self._wanted.wait_for(lambda: self._stopped or self._followed)
                if self._stopped:
                    return
                cursors = {
                    key: min(entries.cursor for entries in all_of_it)
                    for key, all_of_it in self._followed.items()
                }
            cursors[self._wake_key] = self._woken
            try:
                self._hand_out(self._read(cursors))
                self._away = False
            except Exception as error:
                # Whatever it is: without this thread nobody would see a text before its end.
                if not isinstance(error, redis.RedisError):
                    log.exception("news could not be read")
                self._tell_away()

    def _read(self, cursors: Mapping[str, EntryId]) -> dict[str, list[tuple[EntryId, Fields]]]:
        # redis-py types the replies of every protocol and version at once.
        reply: Any = self._redis.xread(
            {key: f"{cursor[0]}-{cursor[1]}" for key, cursor in cursors.items()},
            block=round(BLOCK * 1000),
        )
        streams = reply.items() if isinstance(reply, dict) else reply or ()
        return {
            key: [(_entry_id(name), fields) for name, fields in entries] for key, entries in streams
        }

    def _hand_out(self, streams: dict[str, list[tuple[EntryId, Fields]]]) -> None:
        for name, _ in streams.pop(self._wake_key, []):
            self._woken = name
        with self._lock:
            for key, entries in streams.items():
                for one in self._followed.get(key, ()):
                    one.put(entries)

    def _tell_away(self) -> None:
        """Have everybody look at the database instead, and pause: nobody must spin."""
        self._away = True
        with self._lock:
            for all_of_it in self._followed.values():
                for one in all_of_it:
                    one.tell_away()
            self._wanted.wait_for(lambda: self._stopped, POLL)


def _entry_id(name: str) -> EntryId:
    milliseconds, count = name.split("-")
    return int(milliseconds), int(count)
