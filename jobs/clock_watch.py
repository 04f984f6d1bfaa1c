"""Noticing that the database's clock was set, or that this machine was suspended."""

from __future__ import annotations

import datetime as dt
import time

from jobs.database import Database
from jobs.use_cases import clock

#: Seconds by which a clock that nobody set may seem to move more or less than time passes.
MARGIN = 5.0


class ClockWatch:
    """Compares the database's clock with the monotonic one of this machine, which nobody can set."""

    def __init__(self, database: Database) -> None:
        self._database = database
        #: Both at the last look.
        self._last: tuple[dt.datetime, float] | None = None

    def look(self) -> float:
        """Return by how many seconds the clock was set since the last look: more than 0 if forwards; 0 if it was not."""
        asked = time.monotonic()
        now, here = clock.now(self._database), time.monotonic()
        if here - asked > MARGIN / 2:
            return 0.0  # A reply that took long does not say when the clock was read.
        last, self._last = self._last, (now, here)
        if last is None:
            return 0.0
        moved = (now - last[0]).total_seconds() - (here - last[1])
        return moved if abs(moved) > MARGIN else 0.0
