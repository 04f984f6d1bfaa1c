"""The blocks of a paged KV cache: ref counts, the free list, and the prefix cache of full blocks.

After vLLM's block pool (Kwon et al., Efficient Memory Management for Large Language Model Serving with
PagedAttention, SOSP 2023).
"""

from __future__ import annotations

from collections import OrderedDict


class BlockPool:
    """Allocates blocks, shares full ones, and keeps free ones reusable until they are needed.

    A full block of a prompt is cached under a hash of the adapter and all tokens up to its end. A prompt
    that begins with the same tokens shares it; no sequence writes to it any more. Blocks with a ref count of 0
    keep their content until they are allocated again.
    """

    def __init__(self, num_blocks: int) -> None:
        """
        Args:
            num_blocks: blocks of the cache. Block 0 is never allocated: padding tokens may write there.
        """
        self._ref_counts = [0] * num_blocks
        #: Blocks with a ref count of 0, in the order in which they are to be allocated.
        self._free = OrderedDict.fromkeys(range(1, num_blocks))
        self._hash_of_block: dict[int, bytes] = {}
        self._block_of_hash: dict[bytes, int] = {}

    @property
    def num_blocks(self) -> int:
        """Number of blocks that are free or have been allocated; block 0 is neither."""
        return len(self._ref_counts) - 1

    @property
    def num_free_blocks(self) -> int:
        """Number of blocks that can be allocated, those that hold reusable prefixes included."""
        return len(self._free)

    @property
    def is_unused(self) -> bool:
        """Whether no sequence has a block."""
        return len(self._free) == self.num_blocks

    def lookup(self, hashes: list[bytes]) -> list[int]:
        """Return the cached blocks of the longest prefix of a chain of hashes."""
        blocks = []
        for block_hash in hashes:
            if (block := self._block_of_hash.get(block_hash)) is None:
                break
            blocks.append(block)
        return blocks

    def num_in_use(self, blocks: list[int]) -> int:
        """Return how many of the blocks have a ref count above 0."""
        return sum(self._ref_counts[block] > 0 for block in blocks)

    def share(self, blocks: list[int]) -> None:
        """Increase the ref counts of cached blocks."""
        for block in blocks:
            if not self._ref_counts[block]:
                del self._free[block]
            self._ref_counts[block] += 1

    def allocate(self) -> int:
        """Allocate the block that was freed first, with a ref count of 1."""
        block, _ = self._free.popitem(last=False)
        self._uncache(block)
        self._ref_counts[block] = 1
        return block

    def cache(self, block: int, block_hash: bytes) -> None:
        """Make a full block reusable, unless another one is cached under the same hash.

        Two sequences may have computed the same block in the same step: one of them is enough.
        """
        if block_hash not in self._block_of_hash:
            self._block_of_hash[block_hash] = block
            self._hash_of_block[block] = block_hash

    def free(self, blocks: list[int], *, num_valid: int) -> None:
        """Decrease the ref counts of a sequence's blocks.

        Args:
            blocks: in the order of the sequence's tokens.
            num_valid: how many of them, from the first on, may be reused. The others may hold NaN.
        """
        # The last block first: without its beginning, the rest of a prompt cannot be reused.
        for i in reversed(range(len(blocks))):
            block = blocks[i]
            self._ref_counts[block] -= 1
            if i >= num_valid:
                self._uncache(block)
            if not self._ref_counts[block]:
                self._free[block] = None

    def _uncache(self, block: int) -> None:
        if (block_hash := self._hash_of_block.pop(block, None)) is not None:
            del self._block_of_hash[block_hash]
