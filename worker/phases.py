"""Logs the phases of a worker's start, and how long they took."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

#: The duration of a phase is logged from this many seconds on.
MIN_LOGGED_DURATION = 1.0


@contextmanager
def phase(name: str) -> Iterator[None]:
    """Log the beginning of a phase, and its duration if that was long."""
    log.info("%s", name)
    start = time.monotonic()
    yield
    duration = time.monotonic() - start
    if duration >= MIN_LOGGED_DURATION:
        log.info("%s took %.1f s", name, duration)
