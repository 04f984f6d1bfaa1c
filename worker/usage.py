"""What a worker uses: memory, and the slots and the KV cache of its engine. Heartbeats record it.

The names are those of the worker's metrics, without their prefix.
"""

from __future__ import annotations

import os
from pathlib import Path

from jobs.duties import Duty, DutyThread
from jobs.timing import HEARTBEAT_INTERVAL
from worker.engine.interface import Engine, MeasuredEngine
from worker.metrics import GAUGES

STATM = Path("/proc/self/statm")


def measure(engine: Engine) -> dict[str, int]:
    """Return what a worker uses: numbers and bytes, by name. What is not measured is left out."""
    found = {}
    if (memory := resident_memory()) is not None:
        found["resident_memory_bytes"] = memory
    if isinstance(engine, MeasuredEngine):
        stats = engine.stats()
        values = {name: getattr(stats, field) for field, (name, _) in GAUGES.items()}
        found |= {name: value for name, value in values.items() if value is not None}
    return found


def resident_memory() -> int | None:
    """Return the bytes of memory that this process has (Prometheus's ``process_resident_memory_bytes``).

    None where there is no ``/proc``.
    """
    try:
        pages = int(STATM.read_text().split()[1])
    except OSError:
        return None
    return pages * os.sysconf("SC_PAGE_SIZE")


class UsageMeter(DutyThread):
    """Measures on a thread of its own: a device that does not respond must delay no heartbeat."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        #: The last measurement.
        self.last = measure(engine)
        super().__init__("usage", [Duty(HEARTBEAT_INTERVAL, self.measure)], poll=1.0)

    def measure(self) -> None:
        """Measure."""
        self.last = measure(self._engine)
