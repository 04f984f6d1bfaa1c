"""How much a step may hold: less when memory runs out, more again when that has passed."""

from __future__ import annotations

#: Full steps without trouble before more is tried. Each failure of what was tried doubles it, up to the
#: second: who lacks memory for good then loses one step in some thousands.
PATIENCE = 64
MOST_PATIENCE = 64 * PATIENCE


class Allowance:
    """A number of sequences or tokens that halves when memory runs out, and doubles again later."""

    def __init__(self, most: int) -> None:
        self.most = most
        #: What a step may have now.
        self.now = most
        self._patience = PATIENCE
        #: Since it last changed.
        self._steps = 0
        self._tried = False

    def halve(self, used: int) -> None:
        """Allow half of what a step had that ran out of memory, but at least one."""
        if self._tried:
            self._patience = min(2 * self._patience, MOST_PATIENCE)
        self.now = max(1, min(self.now, used) // 2)
        self._steps, self._tried = 0, False

    def succeed(self, used: int) -> bool:
        """Note what a step had that went well; return whether more is allowed from now on.

        Steps that did not need all that they may have say nothing.
        """
        full = self.now == self.most
        self._steps += full or used >= self.now
        if full:
            if self._steps >= MOST_PATIENCE:
                self._patience, self._tried = PATIENCE, False
            return False
        if self._steps < self._patience:
            return False
        self.now = min(self.most, 2 * self.now)
        self._steps, self._tried = 0, True
        return True
