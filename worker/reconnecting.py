"""Calling a server until it responds."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

import tenacity

from jobs import transient
from jobs.throttle import Throttle

T = TypeVar("T")


def retry(
    call: Callable[[], T],
    *,
    is_transient: Callable[[BaseException], bool],
    log: logging.Logger,
    message: str,
    min_delay: float,
    max_delay: float,
    throttle: Throttle | None = None,
    stopping: threading.Event | None = None,
) -> T:
    """Call until it succeeds; return what it returned.

    Args:
        call: what to call.
        is_transient: returns whether an error may pass. Any other is raised.
        log: gets a warning for a failed call.
        message: the warning; the error's reason is added to it.
        min_delay: the minimum number of seconds between two calls. The maximum is twice as many before the
            second call and doubles with each call; the delay is random between the two.
        max_delay: the maximum never exceeds this.
        throttle: of the warnings; None for all of them.
        stopping: once this is set, a delay ends at once and every error is raised.
    """
    stopping = stopping or threading.Event()

    def warn(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome else None
        if error is not None and (throttle is None or throttle.passes()):
            log.warning("%s: %s", message, transient.reason(error))

    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        wait=tenacity.wait_random_exponential(
            multiplier=2 * min_delay, min=min_delay, max=max_delay
        ),
        stop=tenacity.stop_when_event_set(stopping),
        sleep=tenacity.sleep_using_event(stopping),
        before_sleep=warn,
        reraise=True,
    )
    return retrying(call)
