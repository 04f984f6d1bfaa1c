"""Reading many Redis streams over one connection, on one thread for all subscribers."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import redis

from jobs.redis_clients import WRONG_TYPE
from jobs.subscriptions import EntryId, Fields, Subscription, Turns

log = logging.getLogger(__name__)

#: Seconds between two tries while Redis is away.
RETRY_INTERVAL = 0.5
#: The maximum number of seconds that one read blocks.
MAX_BLOCK = 1.0
#: Seconds between two wakings of a subscriber by text, for each stream that is read here, and the maximum. To wake a
#: thread costs more than to send what it has, and the text of 100 jobs comes 1,000 times a second.
PACE, MAX_PACE = 0.0015, 0.15
#: Seconds after which Redis drops the wake-up stream of a process that has gone.
WAKE_EXPIRY = 3600


class Listener:
    """Reads all streams that have subscribers in this process. Threads may share it."""

    def __init__(self, client: redis.Redis) -> None:
        """
        Args:
            client: decodes replies, and its timeout is longer than `MAX_BLOCK`.
        """
        self._redis = client
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._subscriptions: dict[str, list[Subscription]] = {}
        self._stopped = False
        self._away = False
        self._thread: threading.Thread | None = None
        #: A stream of this process. An entry in it ends a blocking read, so that the next one includes
        #: new subscriptions.
        self._wake_key = f"helixq:wake:{secrets.token_hex(8)}"
        self._wake_cursor: EntryId = (0, 0)
        #: Subscribers with text that they do not know of, each with the seconds between two wakings.
        self._to_wake: dict[Subscription, float] = {}
        self._turns = Turns()

    @contextmanager
    def subscribe(self, key: str) -> Iterator[Subscription]:
        """Subscribe to a stream from its start."""
        subscription = Subscription(self._turns)
        with self._lock:
            self._subscriptions.setdefault(key, []).append(subscription)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="listener", daemon=True)
                self._thread.start()
            self._changed.notify()
        self._wake()
        try:
            yield subscription
        finally:
            with self._lock:
                self._subscriptions[key].remove(subscription)
                if not self._subscriptions[key]:
                    del self._subscriptions[key]
            self._turns.pass_on()

    def close(self) -> None:
        """Stop the thread."""
        with self._lock:
            self._stopped = True
            self._changed.notify()
        if self._thread is not None:
            self._wake()
            self._thread.join()

    def _wake(self) -> None:
        if self._away:
            return  # The thread is not blocked in a read.
        with suppress(redis.RedisError), self._redis.pipeline(transaction=False) as pipe:
            pipe.xadd(self._wake_key, {"wake": "1"}, maxlen=1)
            pipe.expire(self._wake_key, WAKE_EXPIRY)
            pipe.execute()

    # --- the listener's thread --------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._lock:
                self._changed.wait_for(lambda: self._stopped or self._subscriptions)
                if self._stopped:
                    return
                cursors = {
                    key: min(subscription.cursor for subscription in subscriptions)
                    for key, subscriptions in self._subscriptions.items()
                }
            cursors[self._wake_key] = self._wake_cursor
            try:
                self._distribute(self._read(cursors))
                self._away = False
            except Exception as error:
                # Whatever it is: without this thread, nobody would see a text before it is finished.
                if not isinstance(error, redis.RedisError):
                    log.exception("live progress could not be read")
                self._set_away()

    def _read(self, cursors: Mapping[str, EntryId]) -> dict[str, list[tuple[EntryId, Fields]]]:
        try:
            # redis-py types the replies of all protocols and versions at once.
            reply: Any = self._redis.xread(
                {key: f"{cursor[0]}-{cursor[1]}" for key, cursor in cursors.items()},
                block=round((MAX_PACE if self._to_wake or self._turns else MAX_BLOCK) * 1000),
            )
        except redis.ResponseError as error:
            if WRONG_TYPE not in str(error):
                raise
            self._delete_others(cursors)
            return {}
        streams = reply.items() if isinstance(reply, dict) else reply or ()
        return {
            key: [(_entry_id(text), fields) for text, fields in entries] for key, entries in streams
        }

    def _delete_others(self, keys: Iterable[str]) -> None:
        """Delete what is in the place of streams and is none: one would keep all streams from being read."""
        for key in keys:
            if self._redis.type(key) not in ("stream", "none") and self._redis.unlink(key):
                log.warning("%r in Redis was deleted: it was no stream of live progress", key)

    def _distribute(self, streams: dict[str, list[tuple[EntryId, Fields]]]) -> None:
        for entry_id, _ in streams.pop(self._wake_key, []):
            self._wake_cursor = entry_id
        now = time.monotonic()
        with self._lock:
            pace = min(MAX_PACE, PACE * len(self._subscriptions))
            for key, entries in streams.items():
                for subscription in self._subscriptions.get(key, ()):
                    if subscription.put(entries):
                        subscription.told_at = now
                        self._to_wake.pop(subscription, None)
                        subscription.wake()
                    else:
                        self._to_wake[subscription] = pace
        due = [each for each, pace in self._to_wake.items() if now - each.told_at >= pace]
        for subscription in due:
            subscription.told_at = now
            del self._to_wake[subscription]
        self._turns.add(due, now)

    def _set_away(self) -> None:
        """Make all subscribers read the database instead, and pause, so that no thread spins."""
        self._away = True
        with self._lock:
            for subscriptions in self._subscriptions.values():
                for subscription in subscriptions:
                    subscription.set_away()
            self._changed.wait_for(lambda: self._stopped, RETRY_INTERVAL)


def _entry_id(text: str) -> EntryId:
    milliseconds, sequence = text.split("-")
    return int(milliseconds), int(sequence)
