"""Background duties: functions that a thread calls at intervals, even if some of them fail."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from jobs import transient
from jobs.throttle import Throttle

log = logging.getLogger(__name__)

#: The maximum number of seconds before a duty that failed is called again.
RETRY_INTERVAL = 1.0
#: Seconds between two warnings of a thread that the database does not respond: each of its duties notices it every
#: second.
WARNING_INTERVAL = 10.0
#: The share of its interval by which a duty of several processes may come sooner, so that their calls spread out.
JITTER = 0.2
#: Seconds between two checks of what is due, by default.
POLL_INTERVAL = 0.2


@dataclass(frozen=True)
class Duty:
    """A function to call at an interval."""

    #: Seconds between two calls.
    interval: float
    #: Returns True to be called again at once.
    run: Callable[[], bool | None]


class DutyThread:
    """A thread that calls duties, one after another, until it is stopped."""

    def __init__(
        self,
        name: str,
        duties: Sequence[Duty],
        *,
        poll: float = POLL_INTERVAL,
        jitter: float = 0,
        finish: Callable[[], object] = lambda: None,
    ) -> None:
        """
        Args:
            name: of the thread.
            duties: the duties.
            poll: seconds between two checks of what is due.
            jitter: the share of its interval by which a call may come sooner.
            finish: what the thread calls last.
        """
        #: Set when the thread is to stop. Duties that take long check it.
        self.stopped = threading.Event()

        def run() -> None:
            repeat(duties, self.stopped, poll=poll, jitter=jitter)
            finish()

        self._thread = threading.Thread(target=run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread, which calls all duties at once."""
        self._thread.start()

    def stop(self, timeout: float | None = None) -> bool:
        """Stop the thread, and wait until the duty that is running has returned.

        Args:
            timeout: the maximum number of seconds to wait; None for no maximum.

        Returns:
            whether the thread has ended.
        """
        self.stopped.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()


def repeat(
    duties: Sequence[Duty], stopped: threading.Event, *, poll: float, jitter: float = 0
) -> None:
    """Call each duty at its interval until ``stopped`` is set. One that fails is called again within a second.

    Args:
        duties: to call, one after another.
        stopped: ends the loop.
        poll: seconds between two checks of what is due.
        jitter: the share of its interval by which a call may come sooner.
    """
    due = [0.0] * len(duties)
    warnings = Throttle(WARNING_INTERVAL)
    while not stopped.wait(poll):
        for number, duty in enumerate(duties):
            if time.monotonic() < due[number]:
                continue
            due[number] = time.monotonic() + duty.interval * random.uniform(1 - jitter, 1)
            try:
                if duty.run():
                    due[number] = 0.0
            except Exception as error:
                # Whatever it is, the loop must go on: leases and the outbox depend on it.
                due[number] = time.monotonic() + min(duty.interval, RETRY_INTERVAL)
                if transient.is_transient(error):
                    if warnings.passes():
                        log.warning("the database does not respond: %s", transient.reason(error))
                else:
                    log.exception("a background duty failed")
