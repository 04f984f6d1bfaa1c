"""What the scheduler asks of whoever hands out the memory of keys and values."""

from __future__ import annotations

from collections.abc import Sequence as Several
from typing import Protocol

from worker.engine.batching.sequence import Sequence


class KVCacheManager(Protocol):
    """Hands out memory for keys and values, and remembers which prompts are in it.

    It knows nothing of time: what a step computes counts as computed once it is recorded, and what is
    released may be handed out at once. Who has steps under way on a device has to let them run in the
    order in which they were planned.
    """

    def allocate(self, sequence: Sequence) -> bool:
        """Find memory for all tokens of a waiting sequence: prompt and new ones.

        It sets the sequence's ``row``, which is its own until it is released, and ``cached``: how many
        of its tokens are there already, never the last one.

        Returns:
            whether there was memory; if not, nothing has changed.
        """

    def extend(self, sequence: Sequence, end: int) -> bool:
        """Make sure that tokens ``0 … end - 1`` of a running sequence have a place.

        Returns:
            whether there was memory; if not, nothing has changed.
        """

    def record(self, sequence: Sequence, start: int, tokens: Several[int]) -> None:
        """Note that a running sequence's prompt tokens from ``start`` on are in the cache now."""

    def release(self, sequence: Sequence, *, damaged: bool) -> None:
        """Give back all that a running sequence has.

        Args:
            sequence: the sequence; it has no row afterwards, and nothing in the cache.
            damaged: whether what it has computed may be no numbers: none of it is shared again.
        """
