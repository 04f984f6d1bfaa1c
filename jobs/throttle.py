"""Limits how often something happens, such as a warning that many threads would log at once."""

from __future__ import annotations

import threading
import time


class Throttle:
    """Lets one call pass in each interval, whichever thread makes it. Thread-safe."""

    def __init__(self, interval: float) -> None:
        """
        Args:
            interval: the minimum number of seconds between two that pass.
        """
        self._interval = interval
        self._lock = threading.Lock()
        self._passed_at = float("-inf")

    def passes(self) -> bool:
        """Return whether the interval since the last one that passed is over; this one passes then."""
        with self._lock:
            now = time.monotonic()
            if now - self._passed_at < self._interval:
                return False
            self._passed_at = now
            return True
