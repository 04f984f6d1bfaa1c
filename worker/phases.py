"""Says in the log what a start is doing, and how long that took."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)

#: Seconds from which on it is said how long a phase took.
WORTH_SAYING = 1.0


@contextmanager
def phase(what: str) -> Iterator[None]:
    """Log the beginning of a part of a start, and the seconds that it took if they were many."""
    log.info("%s", what)
    began = time.monotonic()
    yield
    took = time.monotonic() - began
    if took >= WORTH_SAYING:
        log.info("%s took %.1f s", what, took)
