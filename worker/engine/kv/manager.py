"""The interface between the scheduler and what manages the KV cache's memory."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from typing import Protocol

from worker.engine.batching.sequence import Sequence


class KVCacheManager(Protocol):
    """Allocates memory of the KV cache, and caches prompts in it.

    It knows nothing of time: tokens are reusable once `cache_prompt` is called, and freed memory may be
    allocated at once. So steps must run on a device in the order in which they are scheduled.
    """

    @property
    def num_blocks(self) -> int:
        """Number of blocks of the cache that sequences can have: rows, in a cache of rows."""

    @property
    def num_free_blocks(self) -> int:
        """Number of blocks that can be allocated, those that hold reusable prefixes included."""

    def allocate(self, sequence: Sequence) -> bool:
        """Allocate memory for all tokens of a waiting sequence, prompt and output.

        Sets the sequence's ``row``, which it keeps until it is freed, and ``num_computed_tokens``: how
        many tokens the prefix cache has. The last token is never one of them.

        Returns:
            whether there was memory. If not, nothing has changed.
        """

    def append_slots(self, sequence: Sequence, num_tokens: int) -> bool:
        """Make sure that a running sequence has memory for its first ``num_tokens`` tokens.

        Returns:
            whether there was memory. If not, nothing has changed.
        """

    def cache_prompt(self, sequence: Sequence, start: int, token_ids: Seq[int]) -> None:
        """Make a running sequence's computed prompt tokens, from ``start`` on, reusable."""

    def free(
        self, sequence: Sequence, *, invalid_kv: bool = False, unverified_kv: bool = False
    ) -> None:
        """Free all memory of a running sequence.

        Args:
            sequence: the sequence. It has no row and no computed tokens afterwards.
            invalid_kv: whether its keys and values may be NaN; then none of them is reused.
            unverified_kv: whether it is unknown if those that it computed are NaN; then these are not reused.
        """
