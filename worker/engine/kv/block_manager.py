"""Memory in blocks of a few tokens: a sequence has as many as it needs, and prompts share theirs.

The block pool is that of vLLM (Kwon et al., Efficient Memory Management for Large Language Model
Serving with PagedAttention, SOSP 2023), and so is the sharing of whole blocks by a chain of hashes.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Hashable
from collections.abc import Sequence as Several
from hashlib import blake2b
from weakref import WeakKeyDictionary

import numpy as np

from worker.engine.batching.sequence import NOWHERE, Sequence

#: The part of all blocks that stays free when a sequence is let in, for those that run to grow into:
#: without it the newcomer would often be the next to be evicted.
WATERMARK = 0.01


class Blocks:
    """Hands out the blocks of a paged cache, and keeps the table of each row's.

    A full block of a prompt is registered under a hash of all tokens up to its end and the adapter.
    Whoever begins with the same takes it over as it is: nobody writes into it any more. Blocks that
    nobody holds keep what is in them until they are handed out again.
    """

    def __init__(
        self, count: int, size: int, *, rows: int, context: int, adapters: Several[Hashable]
    ) -> None:
        """
        Args:
            count: blocks of the cache. The first is never handed out: what fills steps up may write
                there.
            size: tokens of a block.
            rows: the most sequences at once.
            context: the most tokens of one.
            adapters: what tells each adapter from those with other weights, as a digest of them does;
                adapters with equal ones share.

        Raises:
            ValueError: a sequence as long as the context would not fit.
        """
        longest = -(-context // size)
        if count <= longest:
            raise ValueError(f"{count} blocks of {size} tokens are too few for {context} tokens")
        self._size = size
        #: (rows, blocks of a context): the blocks of each row, 0 where it has none.
        self.tables = np.zeros((rows, longest), dtype=np.int32)
        self._flat = self.tables.reshape(-1)
        #: Where the flattened tables have changed since they were last asked for.
        self._changed: list[int] = []
        self._watermark = max(1, int(count * WATERMARK))
        keys = list(dict.fromkeys(adapters))
        #: Where each adapter's chains of hashes begin.
        self._roots = [
            blake2b(b"%d" % keys.index(key), digest_size=32).digest() for key in adapters
        ]
        self._free_rows = list(range(rows))
        #: The blocks of each row, as in the tables.
        self._blocks: list[list[int]] = [[] for _ in range(rows)]
        #: The tokens that they have room for.
        self._room = [0] * rows
        #: How many rows have each block.
        self._holders = [0] * count
        #: Those that none has, in the order in which they are to be handed out.
        self._free = OrderedDict.fromkeys(range(1, count))
        #: What each registered block is registered under, and the other way round.
        self._key_of: dict[int, bytes] = {}
        self._block_of: dict[bytes, int] = {}
        #: A sequence may be asked for in every step while it waits.
        self._chains: WeakKeyDictionary[Sequence, list[bytes]] = WeakKeyDictionary()

    @property
    def free(self) -> int:
        """How many blocks can be had, those that hold prompts of sequences that ended included."""
        return len(self._free)

    def allocate(self, sequence: Sequence) -> bool:
        if not self._free_rows:
            return False
        length = len(sequence)
        shared = self._shared(sequence)
        total = -(-length // self._size)
        taken = total - sum(self._holders[block] > 0 for block in shared)
        spare = self._watermark if len(self._free) < len(self._holders) - 1 else 0
        if taken + spare > len(self._free):
            return False
        for block in shared:
            if not self._holders[block]:
                del self._free[block]
            self._holders[block] += 1
        row = heapq.heappop(self._free_rows)  # the first: few rows are to be looked at then
        self._append(row, shared + [self._take() for _ in range(total - len(shared))])
        sequence.row, sequence.cached = row, len(shared) * self._size
        return True

    def extend(self, sequence: Sequence, end: int) -> bool:
        row = sequence.row
        if end <= self._room[row]:
            return True
        blocks = self._blocks[row]
        more = -(-end // self._size) - len(blocks)
        if more > len(self._free):
            return False
        self._append(row, [self._take() for _ in range(more)])
        return True

    def record(self, sequence: Sequence, start: int, tokens: Several[int]) -> None:
        chain, blocks = self._chain(sequence), self._blocks[sequence.row]
        for i in range(start // self._size, (start + len(tokens)) // self._size):
            # Another sequence may have computed the same in the same step: one of them is enough.
            if chain[i] not in self._block_of:
                self._block_of[chain[i]] = blocks[i]
                self._key_of[blocks[i]] = chain[i]

    def release(self, sequence: Sequence, *, damaged: bool) -> None:
        row = sequence.row
        blocks, self._blocks[row], self._room[row] = self._blocks[row], [], 0
        for block in reversed(blocks):  # without its beginning, the rest of a prompt is of no use
            self._holders[block] -= 1
            if damaged:
                self._unregister(block)
            if not self._holders[block]:
                self._free[block] = None
        self._write(row, 0, [0] * len(blocks))
        heapq.heappush(self._free_rows, row)
        sequence.row = NOWHERE
        sequence.cached = 0

    def take_changes(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what has changed in the tables since this was last called, or since all was 0.

        Returns:
            indices into the flattened tables, where one may come more than once, and the values that
            are there now; both (changes,) int64.
        """
        indices = np.array(self._changed, dtype=np.int64)
        self._changed = []
        return indices, self._flat[indices].astype(np.int64)

    def _shared(self, sequence: Sequence) -> list[int]:
        """Return the registered blocks that a sequence begins with.

        Its last token is in none of them: its scores are wanted, so it is always computed.
        """
        found = []
        for key in self._chain(sequence)[: (len(sequence) - 1) // self._size]:
            if (block := self._block_of.get(key)) is None:
                break
            found.append(block)
        return found

    def _chain(self, sequence: Sequence) -> list[bytes]:
        """Return the keys of a prompt's full blocks: each a hash of the one before and the tokens."""
        if (chain := self._chains.get(sequence)) is None:
            chain, key = [], self._roots[sequence.adapter]
            tokens = np.asarray(sequence.prompt, dtype=np.int64)
            for start in range(0, len(tokens) - self._size + 1, self._size):
                text = tokens[start : start + self._size].tobytes()
                key = blake2b(key + text, digest_size=32).digest()
                chain.append(key)
            self._chains[sequence] = chain
        return chain

    def _take(self) -> int:
        """Take the block out of the free ones that has been free for longest."""
        block, _ = self._free.popitem(last=False)
        self._unregister(block)
        self._holders[block] = 1
        return block

    def _unregister(self, block: int) -> None:
        if (key := self._key_of.pop(block, None)) is not None:
            del self._block_of[key]

    def _append(self, row: int, more: list[int]) -> None:
        """Give a row more blocks."""
        blocks = self._blocks[row]
        self._write(row, len(blocks), more)
        blocks += more
        self._room[row] = len(blocks) * self._size

    def _write(self, row: int, start: int, blocks: list[int]) -> None:
        """Write blocks into a row of the tables, from ``start`` on."""
        first = row * self.tables.shape[1] + start
        if len(blocks) == 1:  # as a rule: a sequence has grown
            self._flat[first] = blocks[0]
            self._changed.append(first)
        else:
            self._flat[first : first + len(blocks)] = blocks
            self._changed += range(first, first + len(blocks))
