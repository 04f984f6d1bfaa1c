"""Prefix cache of a row KV cache: which prompts its rows hold, and what a new prompt can reuse.

The prompts of a role begin alike, with the system prompt as a rule. Their keys and values are equal for as
long as the tokens are, so they are computed once and copied. Adapters change keys and values, so nothing
is shared between roles.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

#: Token id and adapter id of what is empty.
EMPTY = -1
#: A free row is reused in place if its prefix match exceeds that of all other rows by this number of tokens.
MIN_UNIQUE_TOKENS = 64


@dataclass(frozen=True)
class RowAllocation:
    """The row of a prompt, and the cached prefix to reuse."""

    row: int
    #: The row that holds the prefix; `row` itself if nothing is to be copied.
    source_row: int
    #: Length of the prefix.
    num_cached_tokens: int


class RowPrefixCache:
    """The prompts in the rows of a cache, those of finished sequences included."""

    def __init__(self, num_rows: int, max_model_len: int, num_adapters: int) -> None:
        """
        Args:
            num_rows: rows of the KV cache.
            max_model_len: maximum number of tokens of a row.
            num_adapters: number of adapters.
        """
        self._token_ids = np.full((num_rows, max_model_len), EMPTY, dtype=np.int64)
        self._adapter_ids = np.full(num_rows, EMPTY)
        self._lengths = np.zeros(num_rows, dtype=np.int64)
        #: For each adapter, the row around which its rows are chosen, so that attention over the range
        #: from its first row to its last includes few others.
        self._home_rows = [
            round(i * (num_rows - 1) / max(1, num_adapters - 1)) for i in range(num_adapters)
        ]

    def allocate(
        self, adapter_id: int, token_ids: Sequence[int], free_rows: Collection[int]
    ) -> RowAllocation:
        """Choose a free row for a prompt, and the cached prefix that it reuses.

        From then on the row counts as holding that prefix alone.

        Args:
            adapter_id: the prompt's adapter.
            token_ids: the prompt's tokens.
            free_rows: rows that no running sequence has; at least one.
        """
        matches = self._prefix_matches(adapter_id, token_ids)
        longest = int(matches.max())
        row = min(free_rows, key=lambda row: self._eviction_order(row, adapter_id))
        best = int(matches.argmax())
        second_longest = np.delete(matches, best).max(initial=0)
        if best in free_rows and longest - second_longest >= MIN_UNIQUE_TOKENS:
            row = best  # no other row has so much of it: reuse it in place, without copy or loss
        source_row = row if matches[row] == longest else int(matches.argmax())
        self._token_ids[row] = EMPTY
        self.store(row, adapter_id, 0, token_ids[:longest])
        return RowAllocation(row, source_row, longest)

    def common_prefix_len(self, rows: Sequence[int]) -> int:
        """Return the length of the prefix that the prompts in rows of one adapter share."""
        end = int(self._lengths[rows].min())
        equal = (self._token_ids[rows, :end] == self._token_ids[rows[0], :end]).all(axis=0)
        return end if equal.all() else int(equal.argmin())

    def store(self, row: int, adapter_id: int, start: int, token_ids: Sequence[int]) -> None:
        """Note that a row's keys and values from ``start`` on are those of ``token_ids``."""
        end = start + len(token_ids)
        self._token_ids[row, start:end] = token_ids
        self._adapter_ids[row] = adapter_id
        self._lengths[row] = end

    def invalidate(self, row: int) -> None:
        """Never reuse what a row holds: it may be NaN."""
        self._adapter_ids[row] = EMPTY
        self._lengths[row] = 0
        self._token_ids[row] = EMPTY

    def _prefix_matches(self, adapter_id: int, token_ids: Sequence[int]) -> np.ndarray:
        """Return for each row the length of the prefix that it shares with a prompt: (rows,) int64.

        The prompt's last token never counts: its logits are wanted, so it is always computed.
        """
        matches = np.zeros(len(self._adapter_ids), dtype=np.int64)
        rows = np.flatnonzero(self._adapter_ids == adapter_id)
        end = min(len(token_ids) - 1, int(self._lengths[rows].max(initial=0)))
        if end > 0:
            differs = self._token_ids[rows, :end] != np.asarray(token_ids[:end])
            matches[rows] = np.where(differs.any(axis=1), differs.argmax(axis=1), end)
        return matches

    def _eviction_order(self, row: int, adapter_id: int) -> tuple[bool, int]:
        """Sort key of free rows: those near the adapter's home row first, other adapters' only rows last."""
        holder = self._adapter_ids[row]
        only_row = (
            holder not in (EMPTY, adapter_id) and np.count_nonzero(self._adapter_ids == holder) == 1
        )
        return bool(only_row), abs(row - self._home_rows[adapter_id])
