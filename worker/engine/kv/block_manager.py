"""Manages a paged KV cache: the block table of each running sequence; prompts share full blocks."""

from __future__ import annotations

import heapq
from collections.abc import Hashable
from collections.abc import Sequence as Seq
from hashlib import blake2b
from weakref import WeakKeyDictionary

import numpy as np

from worker.engine.batching.sequence import UNALLOCATED, Sequence
from worker.engine.kv.block_pool import BlockPool

#: Share of all blocks that stays free when a sequence is admitted, for running ones to grow into.
#: Without it the new sequence would often be the next to be preempted.
WATERMARK = 0.01


class BlockManager:
    """Gives sequences blocks of a `worker.engine.kv.paged_cache.PagedKVCache`."""

    def __init__(
        self,
        num_blocks: int,
        block_size: int,
        *,
        num_rows: int,
        max_model_len: int,
        adapter_keys: Seq[Hashable],
    ) -> None:
        """
        Args:
            num_blocks: blocks of the cache; block 0 is for padding tokens.
            block_size: tokens of a block.
            num_rows: maximum number of running sequences.
            max_model_len: maximum number of tokens of a sequence.
            adapter_keys: identify each adapter's weights, for example by a digest; adapters with equal
                keys share prefixes.

        Raises:
            ValueError: one sequence of ``max_model_len`` tokens would not fit.
        """
        max_blocks = -(-max_model_len // block_size)
        if num_blocks <= max_blocks:
            raise ValueError(
                f"{num_blocks} blocks of {block_size} tokens are too few for {max_model_len} tokens"
            )
        self._block_size = block_size
        #: (rows, blocks of a context) int32: the blocks of each row's sequence, then 0.
        self.block_tables = np.zeros((num_rows, max_blocks), dtype=np.int32)
        self._flat_tables = self.block_tables.reshape(-1)
        #: Indices into the flat tables that have changed since `on_tables_updated`.
        self._updated: list[int] = []
        self._watermark_blocks = max(1, int(num_blocks * WATERMARK))
        distinct_keys = list(dict.fromkeys(adapter_keys))
        #: First hash of each adapter's chains.
        self._root_hashes = [
            blake2b(b"%d" % distinct_keys.index(key), digest_size=32).digest()
            for key in adapter_keys
        ]
        self._free_rows = list(range(num_rows))
        #: The blocks of each row, as in the tables.
        self._blocks: list[list[int]] = [[] for _ in range(num_rows)]
        #: How many of them were shared when the sequence was admitted.
        self._num_shared = [0] * num_rows
        #: Tokens that they have room for.
        self._num_slots = [0] * num_rows
        self._pool = BlockPool(num_blocks)
        #: Block hashes of prompts. A waiting sequence is looked up in every step.
        self._hashes: WeakKeyDictionary[Sequence, list[bytes]] = WeakKeyDictionary()

    @property
    def num_blocks(self) -> int:
        return self._pool.num_blocks

    @property
    def num_free_blocks(self) -> int:
        """Number of blocks that can be allocated, those that hold reusable prefixes included."""
        return self._pool.num_free_blocks

    def allocate(self, sequence: Sequence) -> bool:
        if not self._free_rows:
            return False
        pool = self._pool
        num_tokens = len(sequence)
        # The last token is always computed, since its logits are wanted.
        hashes = self._block_hashes(sequence)[: (num_tokens - 1) // self._block_size]
        shared = pool.lookup(hashes)
        num_blocks = -(-num_tokens // self._block_size)
        num_taken = num_blocks - pool.num_in_use(shared)
        watermark = 0 if pool.is_unused else self._watermark_blocks
        if num_taken + watermark > pool.num_free_blocks:
            return False
        pool.share(shared)
        row = heapq.heappop(self._free_rows)  # the lowest, so that few rows are in use
        self._append(row, shared + [pool.allocate() for _ in range(num_blocks - len(shared))])
        self._num_shared[row] = len(shared)
        sequence.row = row
        sequence.num_computed_tokens = len(shared) * self._block_size
        return True

    def append_slots(self, sequence: Sequence, num_tokens: int) -> bool:
        row = sequence.row
        if num_tokens <= self._num_slots[row]:
            return True
        num_new = -(-num_tokens // self._block_size) - len(self._blocks[row])
        if num_new > self._pool.num_free_blocks:
            return False
        self._append(row, [self._pool.allocate() for _ in range(num_new)])
        return True

    def cache_prompt(self, sequence: Sequence, start: int, token_ids: Seq[int]) -> None:
        hashes, blocks = self._block_hashes(sequence), self._blocks[sequence.row]
        first, end = start // self._block_size, (start + len(token_ids)) // self._block_size
        for i in range(first, end):
            self._pool.cache(blocks[i], hashes[i])

    def free(
        self, sequence: Sequence, *, invalid_kv: bool = False, unverified_kv: bool = False
    ) -> None:
        row = sequence.row
        blocks, self._blocks[row], self._num_slots[row] = self._blocks[row], [], 0
        # Whoever computed the shared ones has verified them, or gives them up.
        num_verified = self._num_shared[row] if unverified_kv else len(blocks)
        self._pool.free(blocks, num_valid=0 if invalid_kv else num_verified)
        self._write(row, 0, [0] * len(blocks))
        heapq.heappush(self._free_rows, row)
        sequence.row = UNALLOCATED
        sequence.num_computed_tokens = 0

    def table_updates(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what has changed in the block tables since `on_tables_updated`, or since they were all 0.

        Returns:
            indices into the flat tables, possibly with repetitions, and their values now; both
            (changes,) int64.
        """
        indices = np.array(self._updated, dtype=np.int64)
        return indices, self._flat_tables[indices].astype(np.int64)

    def on_tables_updated(self) -> None:
        """Forget the `table_updates`: the device has them."""
        self._updated = []

    def _block_hashes(self, sequence: Sequence) -> list[bytes]:
        """Return the hashes of a prompt's full blocks: each of the hash before and the block's tokens."""
        if (hashes := self._hashes.get(sequence)) is None:
            hashes, block_hash = [], self._root_hashes[sequence.adapter_id]
            token_ids = np.asarray(sequence.prompt_token_ids, dtype=np.int64)
            for start in range(0, len(token_ids) - self._block_size + 1, self._block_size):
                block = token_ids[start : start + self._block_size].tobytes()
                block_hash = blake2b(block_hash + block, digest_size=32).digest()
                hashes.append(block_hash)
            self._hashes[sequence] = hashes
        return hashes

    def _append(self, row: int, new_blocks: list[int]) -> None:
        blocks = self._blocks[row]
        self._write(row, len(blocks), new_blocks)
        blocks += new_blocks
        self._num_slots[row] = len(blocks) * self._block_size

    def _write(self, row: int, start: int, blocks: list[int]) -> None:
        """Write blocks into a row of the tables, from column ``start`` on."""
        first = row * self.block_tables.shape[1] + start
        if len(blocks) == 1:  # as a rule: a sequence has grown
            self._flat_tables[first] = blocks[0]
            self._updated.append(first)
        else:
            self._flat_tables[first : first + len(blocks)] = blocks
            self._updated += range(first, first + len(blocks))
