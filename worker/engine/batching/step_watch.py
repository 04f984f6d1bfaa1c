"""Notices a step that does not end: a device that hangs raises no error."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)

#: Seconds that no step on CUDA takes, the compilation of a kernel that was not foreseen included.
MAX_STEP_SECONDS = 120.0
#: Looks at the steps in that time. They are counted, so that the time in which a machine is suspended is not.
NUM_LOOKS = 24


class StepWatch:
    """Looks at an engine's steps, on a thread of its own, until it is closed."""

    def __init__(
        self,
        current_step: Callable[[], int | None],
        on_hang: Callable[[], object],
        max_step_seconds: float,
    ) -> None:
        """Start the thread.

        Args:
            current_step: returns the number of the step that is being executed; None between two.
            on_hang: called once, after the same step was seen for `max_step_seconds`.
            max_step_seconds: how long a step may take.
        """
        self._current_step = current_step
        self._on_hang = on_hang
        self._max_step_seconds = max_step_seconds
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._run, name="step watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop."""
        self._closed.set()
        self._thread.join()

    def _run(self) -> None:
        last: int | None = None
        count = 0
        while not self._closed.wait(self._max_step_seconds / NUM_LOOKS):
            step = self._current_step()
            count = count + 1 if step is not None and step == last else 0
            last = step
            if count >= NUM_LOOKS:
                log.error("a step has not ended for %g seconds", self._max_step_seconds)
                self._on_hang()
                return
