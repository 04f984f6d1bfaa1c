"""Keys and values in blocks of a few tokens, which sequences take as their texts grow."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedConfig

#: Tokens of a block: what a sequence wastes at most, and what prompts share is rounded down to. It is what
#: attention of decoding tokens reads at a time: with half of it, that took 5% longer.
BLOCK_SIZE = 32


class BlockCache:
    """A tensor of keys and one of values for each layer: blocks x heads x block size x head size.

    Nothing reads a place that no token was written to, so the memory is not cleared.
    """

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        blocks: int,
        block_size: int = BLOCK_SIZE,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        """
        Args:
            config: the model's.
            blocks: how many; the first one belongs to nobody.
            block_size: tokens of one.
            dtype: of keys and values.
            device: where.
        """
        self.heads, self.size = shape_of(config)
        self.blocks = blocks
        self.block_size = block_size
        self.device = device
        shape = (blocks, self.heads, block_size, self.size)
        layers = range(config.num_hidden_layers)
        self.keys = [torch.empty(shape, dtype=dtype, device=device) for _ in layers]
        self.values = [torch.empty(shape, dtype=dtype, device=device) for _ in layers]

    @property
    def nbytes(self) -> int:
        return 2 * len(self.keys) * self.keys[0].nbytes

    def gather(self, tensor: Tensor, table: Tensor, count: int) -> Tensor:
        """Return a sequence's first keys or values in one piece.

        Args:
            tensor: a layer's.
            table: the sequence's blocks, (blocks,) integers.
            count: how many tokens.

        Returns:
            (heads, count, head size).
        """
        needed = -(-count // self.block_size)
        found = tensor[table[:needed].long()].transpose(0, 1)
        return found.reshape(self.heads, -1, self.size)[:, :count]


def shape_of(config: PreTrainedConfig) -> tuple[int, int]:
    """Return how many key-value heads a model has, and their size."""
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(heads), int(size)
