"""Calling a server until it responds."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from jobs import transient

T = TypeVar("T")


def retry(
    call: Callable[[], T],
    *,
    is_transient: Callable[[Exception], bool],
    log: logging.Logger,
    message: str,
    min_delay: float,
    max_delay: float,
    log_interval: float = 0.0,
    stopping: threading.Event | None = None,
) -> T:
    """Call until it succeeds; return what it returned.

    Args:
        call: what to call.
        is_transient: returns whether an error may pass. Any other is raised.
        log: gets a warning for a failed call.
        message: the warning; the error's reason is added to it.
        min_delay: seconds before the second call. They double with each call, with jitter.
        max_delay: the maximum of these seconds.
        log_interval: the minimum number of seconds between two warnings.
        stopping: once this is set, every error is raised.
    """
    stopping = stopping or threading.Event()
    delay, logged_at = min_delay, float("-inf")
    while True:
        try:
            return call()
        except Exception as error:
            if stopping.is_set() or not is_transient(error):
                raise
            if time.monotonic() - logged_at >= log_interval:
                log.warning("%s: %s", message, transient.reason(error))
                logged_at = time.monotonic()
        stopping.wait(delay * random.uniform(0.5, 1.5))
        delay = min(delay * 2, max_delay)
