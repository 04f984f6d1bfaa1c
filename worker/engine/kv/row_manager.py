"""Manages a KV cache of rows: one row for each running sequence; prefixes are copied."""

from __future__ import annotations

from collections.abc import Sequence as Seq

from worker.engine.batching.sequence import UNALLOCATED, Sequence
from worker.engine.kv.prefix_cache import RowAllocation, RowPrefixCache


class RowManager:
    """Manages the rows of a `worker.engine.kv.row_cache.RowKVCache`."""

    def __init__(self, num_rows: int, *, max_model_len: int, num_adapters: int) -> None:
        """
        Args:
            num_rows: rows of the cache.
            max_model_len: maximum number of tokens of a row.
            num_adapters: number of adapters.
        """
        self._num_rows = num_rows
        self._free_rows = set(range(num_rows))
        self._prefix_cache = RowPrefixCache(num_rows, max_model_len, num_adapters)
        self._copies: list[RowAllocation] = []
        self._rows_to_zero: list[int] = []

    def allocate(self, sequence: Sequence) -> bool:
        if not self._free_rows:
            return False
        allocation = self._prefix_cache.allocate(
            sequence.adapter_id, sequence.prompt_token_ids, self._free_rows
        )
        self._free_rows.remove(allocation.row)
        sequence.row = allocation.row
        sequence.num_computed_tokens = allocation.num_cached_tokens
        if allocation.source_row != allocation.row:
            self._copies.append(allocation)
        return True

    def append_slots(self, sequence: Sequence, num_tokens: int) -> bool:  # noqa: ARG002  # a row has room for all
        return True

    def cache_prompt(self, sequence: Sequence, start: int, token_ids: Seq[int]) -> None:
        self._prefix_cache.store(sequence.row, sequence.adapter_id, start, token_ids)

    def free(
        self, sequence: Sequence, *, invalid_kv: bool = False, unverified_kv: bool = False
    ) -> None:
        self._free_rows.add(sequence.row)
        if invalid_kv or unverified_kv:
            self._prefix_cache.invalidate(sequence.row)
            self._rows_to_zero.append(sequence.row)
        sequence.row = UNALLOCATED
        sequence.num_computed_tokens = 0

    def take_copies(self) -> list[RowAllocation]:
        """Return the prefixes to copy, in this order, before the next step, and clear the list."""
        copies, self._copies = self._copies, []
        return copies

    def take_rows_to_zero(self) -> list[int]:
        """Return the rows to zero before any copy, since they may hold NaN, and clear the list."""
        rows, self._rows_to_zero = self._rows_to_zero, []
        return rows

    def common_prefix_len(self, sequences: Seq[Sequence]) -> int:
        """Return the length of the prefix that running sequences of one adapter share."""
        return self._prefix_cache.common_prefix_len([s.row for s in sequences])

    @property
    def num_blocks(self) -> int:
        return self._num_rows

    @property
    def num_free_blocks(self) -> int:
        return len(self._free_rows)
