"""A cache of the API keys in use, so that a poll costs no query for its key."""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
from collections.abc import Callable

from sqlalchemy.exc import SQLAlchemyError

from jobs import transient
from jobs.database import Database
from jobs.models import ApiKey
from jobs.use_cases import keys

log = logging.getLogger(__name__)

#: Seconds for which a key is cached, and so for which it may still work after it was revoked.
TTL = 5.0
#: The maximum number of cached keys.
MAX_ENTRIES = 10_000
#: The name of the thread that records uses.
THREAD = "key-uses"


class KeyCache:
    """Finds keys by the secrets in headers and cookies. Threads share it."""

    def __init__(self, database: Database) -> None:
        self._database = database
        #: By the hash of a secret: when the entry ends, and the key. Only valid keys are cached: made-up
        #: secrets take no memory.
        self._entries: dict[bytes, tuple[float, ApiKey]] = {}
        self._lock = threading.Lock()
        #: When the use of a key was last recorded, by the key's id.
        self._recorded_at: dict[str, float] = {}
        #: The ids of keys whose use is to be recorded, and whether a thread is doing so.
        self._used: set[str] = set()
        self._recording = False
        self._recorder: threading.Thread | None = None

    def close(self) -> None:
        """Wait until the uses of keys are recorded: the database can be closed then."""
        with self._lock:
            recorder = self._recorder
        if recorder is not None:
            recorder.join()

    def find(self, secret: str) -> ApiKey | None:
        """Return the valid key with a secret, if there is one."""
        return self._find(secret, keys.find)

    def find_by_session(self, secret: str) -> ApiKey | None:
        """Return the valid key of a login session, given the secret in its cookie, if there is one."""
        return self._find(secret, keys.find_by_session)

    def forget_session(self, secret: str) -> None:
        """Remove a login session from the cache."""
        self._entries.pop(_name(secret, keys.find_by_session), None)

    def _find(self, secret: str, read: Callable[[Database, str], ApiKey | None]) -> ApiKey | None:
        name = _name(secret, read)
        now = time.monotonic()
        entry = self._entries.get(name)
        if entry is not None and now < entry[0]:
            return entry[1]
        key = read(self._database, secret)
        if key is None:
            self._entries.pop(name, None)
            return None
        if len(self._entries) >= MAX_ENTRIES:
            self._entries.clear()
        self._entries[name] = now + TTL, key
        self._record_use(key.id)
        return key

    def _record_use(self, key_id: str) -> None:
        """Record that a key is in use, on another thread: SQLite may have to wait for another writer."""
        now = time.monotonic()
        with self._lock:
            if now - self._recorded_at.get(key_id, -math.inf) < keys.USE_INTERVAL:
                return
            self._recorded_at[key_id] = now
            self._used.add(key_id)
            if self._recording:
                return
            self._recording = True
            self._recorder = threading.Thread(target=self._record_uses, name=THREAD, daemon=True)
            self._recorder.start()

    def _record_uses(self) -> None:
        while True:
            with self._lock:
                if not self._used:
                    self._recording = False
                    return
                used, self._used = self._used, set()
            try:
                keys.mark_used(self._database, used)
            except SQLAlchemyError as error:
                log.warning("the use of API keys was not recorded: %s", transient.reason(error))


def _name(secret: str, read: Callable[[Database, str], ApiKey | None]) -> bytes:
    """Return the hash of a secret and its kind: the cache should not hold the secrets themselves."""
    return hashlib.sha256(f"{read.__name__} {secret}".encode()).digest()
