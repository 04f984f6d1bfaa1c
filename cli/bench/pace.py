"""How fast the machine is, measured again and again.

A virtual machine shares its processors with others. While these are busy, the service's capacity is lower, and a load
that was 80% of it would be too much.
"""

from __future__ import annotations

import asyncio
import statistics
import time

#: Rounds of the computation: about 5 milliseconds.
ROUNDS = 100_000
#: Seconds between two samples, and of samples that say how fast the machine is now.
INTERVAL = 2.0
WINDOW = 30.0


def probe() -> float:
    """Return the processor time of a fixed computation, in seconds."""
    start = time.thread_time()
    total = 0
    for number in range(ROUNDS):
        total += number * number
    return time.thread_time() - start


class Pace:
    """The speed of the machine: 1 when it was calibrated."""

    def __init__(self) -> None:
        self._samples: list[tuple[float, float]] = []
        self._reference = 0.0

    async def keep_sampling(self) -> None:
        """Sample at intervals until it is cancelled."""
        while True:
            self.sample()
            await asyncio.sleep(INTERVAL)

    def sample(self) -> None:
        """Measure once."""
        self._samples.append((time.monotonic(), probe()))

    def calibrate(self) -> None:
        """Call the median speed so far 1, and forget its samples."""
        self._reference = statistics.median(seconds for _, seconds in self._samples)
        self._samples = self._samples[-1:]

    def speed(self) -> float:
        """Return the median speed of the last half minute."""
        since = self._samples[-1][0] - WINDOW
        return self._relative([seconds for at, seconds in self._samples if at >= since])

    def by_thirds(self) -> list[float]:
        """Return the median speeds of the thirds of the time since it was calibrated."""
        count = len(self._samples)
        bounds = [max(1, count * third // 3) for third in (1, 2, 3)]
        seconds = [seconds for _, seconds in self._samples]
        return [
            self._relative(seconds[min(start, end - 1) : end])
            for start, end in zip([0, *bounds], bounds, strict=False)
        ]

    def _relative(self, seconds: list[float]) -> float:
        """Return the median speed of samples, relative to that of the calibration."""
        return self._reference / statistics.median(seconds)
