"""How long servers of others are left alone after failures."""

from __future__ import annotations

from dataclasses import dataclass

#: Growth beyond it makes no difference: far more than any delay, and no power of it is too large for a float.
_MAX_GROWTH = 16


@dataclass(frozen=True)
class Backoff:
    """Delays in seconds: the ``first`` one, then each ``factor`` times as long as the one before, up to ``most``."""

    first: float
    factor: float
    most: float

    def delay(self, failures: int) -> float:
        """Return the seconds until the next attempt after some failures in a row, 1 or more."""
        return min(self.first * self.factor ** min(failures - 1, _MAX_GROWTH), self.most)


#: Of witnesses and of receivers of traces.
BACKOFF = Backoff(first=2.0, factor=2.0, most=300.0)
