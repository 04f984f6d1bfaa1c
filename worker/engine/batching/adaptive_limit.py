"""A limit on the size of steps that halves when memory runs out, and doubles again later."""

from __future__ import annotations

#: Full steps without a failure before the limit is doubled. Each failure after a doubling doubles this
#: number, up to the maximum: a device that lacks memory for good loses one step in some thousands.
BASE_BACKOFF_STEPS = 64
MAX_BACKOFF_STEPS = 64 * BASE_BACKOFF_STEPS


class AdaptiveLimit:
    """A number of sequences or tokens that adapts to the memory there is."""

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        #: The limit at present.
        self.current = maximum
        self._backoff_steps = BASE_BACKOFF_STEPS
        #: Full steps since the limit last changed.
        self._full_steps = 0
        #: Whether the last change was a doubling.
        self._was_doubled = False

    def halve(self, used: int) -> None:
        """Set the limit to half of what a step had that ran out of memory, but at least 1."""
        if self._was_doubled:
            self._backoff_steps = min(2 * self._backoff_steps, MAX_BACKOFF_STEPS)
        self.current = max(1, min(self.current, used) // 2)
        self._full_steps, self._was_doubled = 0, False

    def on_success(self, used: int) -> bool:
        """Count a step that had enough memory; return whether the limit was doubled.

        Steps that did not reach the limit count for nothing.
        """
        at_maximum = self.current == self.maximum
        self._full_steps += at_maximum or used >= self.current
        if at_maximum:
            if self._full_steps >= MAX_BACKOFF_STEPS:
                self._backoff_steps, self._was_doubled = BASE_BACKOFF_STEPS, False
            return False
        if self._full_steps < self._backoff_steps:
            return False
        self.current = min(self.maximum, 2 * self.current)
        self._full_steps, self._was_doubled = 0, True
        return True
