"""The number of queued jobs, without counting them for each new one.

A count reads each queued job, and on SQLite all other writers wait for it: with 10,000 queued jobs it takes
longer than everything else that accepting a job takes. So a process counts once a second, and adds what it accepts itself.
Near a limit it counts each time.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

#: Seconds after which a count is repeated.
MAX_AGE = 1.0
#: A count is near its limit once fewer jobs than this, or than a tenth of the limit, are left. Other processes accept
#: fewer than that within `MAX_AGE`.
MARGIN = 1000
#: With more counts than this, old ones are forgotten.
MANY = 1000


@dataclass
class _Count:
    number: int
    #: On the monotonic clock.
    counted_at: float


class QueuedCounts:
    """The counts of a process: of the jobs of all owners (None), and of API keys. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: dict[str | None, _Count] = {}

    def admit(self, key_id: str | None, maximum: int, count: Callable[[], int]) -> bool:
        """Return whether one more job may be queued, and count it if so.

        Args:
            key_id: of the API key, or None.
            maximum: the limit.
            count: counts the queued jobs.
        """
        now = time.monotonic()
        with self._lock:
            last = self._counts.get(key_id)
            if (
                last is not None
                and now - last.counted_at < MAX_AGE
                and last.number < maximum - max(MARGIN, maximum // 10)
            ):
                last.number += 1
                return True
        number = count()
        with self._lock:
            self._counts[key_id] = _Count(number + 1, now)
            if len(self._counts) > MANY:
                self._counts = {
                    key: kept
                    for key, kept in self._counts.items()
                    if now - kept.counted_at < MAX_AGE
                }
        return number < maximum
