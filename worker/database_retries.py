"""Calls to the database that a worker repeats until they succeed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from jobs import transient
from jobs.throttle import Throttle
from worker.reconnecting import retry

log = logging.getLogger(__name__)

#: Seconds between two attempts while the database does not respond.
MIN_RETRY_DELAY, MAX_RETRY_DELAY = 0.1, 5.0
#: Seconds between two warnings of a worker: each of its stages may be waiting.
WARNING_INTERVAL = 10.0

T = TypeVar("T")


class DatabaseRetries:
    """Calls the database until it responds, so that no finished text is lost."""

    def __init__(self, stopping: threading.Event) -> None:
        """
        Args:
            stopping: once it is set, calls are not repeated any more.
        """
        self._stopping = stopping
        self._throttle = Throttle(WARNING_INTERVAL)

    def __call__(self, call: Callable[[], T]) -> T:
        """Call until the database responds; return the result.

        Raises:
            Exception: an error that is not transient, or any error once the worker is stopping.
        """
        return retry(
            call,
            is_transient=transient.is_transient,
            log=log,
            message="the database does not respond, trying again",
            min_delay=MIN_RETRY_DELAY,
            max_delay=MAX_RETRY_DELAY,
            throttle=self._throttle,
            stopping=self._stopping,
        )
