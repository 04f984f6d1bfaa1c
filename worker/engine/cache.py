"""Keys and values of all slots, allocated once, and the attention over them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedConfig

#: The name under which transformers finds `attend`.
ATTENTION = "helixq"
#: Attention of decoding rows reaches over the longest of them, rounded up to a multiple.
ROUND = 64


class KVCache:
    """A tensor of keys and one of values for each layer: slots x heads x context x head size."""

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        slots: int,
        context: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (slots, heads, context, size)
        layers = range(config.num_hidden_layers)
        self.keys = [_zeros(shape, dtype, device) for _ in layers]
        self.values = [_zeros(shape, dtype, device) for _ in layers]
        self.slots = slots
        self.context = context

    @property
    def nbytes(self) -> int:
        return 2 * len(self.keys) * self.keys[0].nbytes

    @staticmethod
    def bytes_per_token(config: PreTrainedConfig, dtype: torch.dtype) -> int:
        """What one token of one slot takes in all layers."""
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        return int(2 * config.num_hidden_layers * heads * size * dtype.itemsize)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros, not whatever is there: a NaN under a mask is still a NaN."""
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    # numpy's come from the system as they are: a page takes memory when it is first written to.
    memory = np.zeros(math.prod(shape) * dtype.itemsize, dtype=np.uint8)
    return torch.from_numpy(memory).view(dtype).view(shape)


@dataclass(frozen=True)
class Segment:
    """Successive tokens of one slot within a step."""

    slot: int
    #: Position of the first one in its sequence.
    start: int
    #: How many.
    length: int


@dataclass
class Layout:
    """Where the tokens of a step belong: one for each decoding row, then whole segments."""

    cache: KVCache
    #: Slots of the decoding rows, rising, and the positions of their tokens.
    decoding: Sequence[int]
    at: Sequence[int]
    segments: Sequence[Segment]
    #: Of all tokens of the step: int64.
    slots: Tensor = field(init=False)
    positions: Tensor = field(init=False)
    #: Masks by the sliding window that they keep; layers share them.
    _masks: dict[int | None, tuple[Tensor, list[Tensor]]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        device = self.cache.keys[0].device
        slots, positions = list(self.decoding), list(self.at)
        for segment in self.segments:
            slots += [segment.slot] * segment.length
            positions += range(segment.start, segment.start + segment.length)
        self.slots = torch.tensor(slots, device=device)
        self.positions = torch.tensor(positions, device=device)
        #: Rows that the decoding part computes: all slots up to the highest in use, since a view of
        #: the cache's beginning costs nothing and picking rows would copy it.
        self.rows = max(self.decoding, default=-1) + 1
        longest = max(self.at, default=-1) + 1
        self.reach = min(self.cache.context, -(-longest // ROUND) * ROUND)
        self.gaps = self.rows != len(self.decoding)

    def masks(self, window: int | None) -> tuple[Tensor, list[Tensor]]:
        """Return what the decoding rows and each segment may see.

        Args:
            window: a token sees so many tokens, itself included; all before it if None.

        Returns:
            (rows, 1, 1, reach), and for each segment (length, end): bool.
        """
        if window not in self._masks:
            self._masks[window] = (self._decoding_mask(window), self._segment_masks(window))
        return self._masks[window]

    def _decoding_mask(self, window: int | None) -> Tensor:
        device = self.positions.device
        # An idle slot's row sees its first token: what comes out is dropped, but is a number.
        at = torch.zeros(self.rows, dtype=torch.int64, device=device)
        count = len(self.decoding)
        at[self.slots[:count]] = self.positions[:count]
        return _sees(at[:, None], torch.arange(self.reach, device=device), window)[:, None, None]

    def _segment_masks(self, window: int | None) -> list[Tensor]:
        device = self.positions.device
        masks = []
        for segment in self.segments:
            end = segment.start + segment.length
            at = torch.arange(segment.start, end, device=device)
            masks.append(_sees(at[:, None], torch.arange(end, device=device), window))
        return masks


def _sees(at: Tensor, other: Tensor, window: int | None) -> Tensor:
    found = other <= at
    return found if window is None else found & (other > at - window)


def attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    layout: Layout,
    scaling: float,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Store a step's keys and values, and attend over the slots: transformers' attention interface.

    Args:
        module: the attention layer; its ``layer_idx`` counts.
        query: (1, heads, tokens, head size).
        key, value: (1, key-value heads, tokens, head size), rotated already.
        attention_mask: unused; the layout has it.
        layout: where the tokens belong.
        scaling: of the scores.
        sliding_window: a token sees so many tokens, itself included.

    Returns:
        (1, tokens, heads, head size).
    """
    del attention_mask
    index: Any = module.layer_idx  # transformers sets it
    keys, values = layout.cache.keys[index], layout.cache.values[index]
    keys[layout.slots, :, layout.positions] = key[0].transpose(0, 1)
    values[layout.slots, :, layout.positions] = value[0].transpose(0, 1)
    heads, tokens, size = query.shape[1:]
    groups = keys.shape[1]
    # Query heads that share a key head become queries of one head: nothing is repeated.
    queries = query[0].view(groups, heads // groups, tokens, size)
    decoding_mask, segment_masks = layout.masks(sliding_window)
    out = query.new_empty(tokens, heads, size)
    count = len(layout.decoding)
    if count:
        q = queries[:, :, :count].permute(2, 0, 1, 3)
        if layout.gaps:
            rows = q.new_zeros(layout.rows, *q.shape[1:])
            rows[layout.slots[:count]] = q
            q = rows
        found = scaled_dot_product_attention(
            q,
            keys[: layout.rows, :, : layout.reach],
            values[: layout.rows, :, : layout.reach],
            attn_mask=decoding_mask,
            scale=scaling,
        )
        if layout.gaps:
            found = found[layout.slots[:count]]
        out[:count] = found.reshape(count, heads, size)
    at = count
    for segment, mask in zip(layout.segments, segment_masks, strict=True):
        length, end = segment.length, segment.start + segment.length
        found = scaled_dot_product_attention(
            queries[:, :, at : at + length].reshape(1, groups, -1, size),
            keys[segment.slot, :, :end][None],
            values[segment.slot, :, :end][None],
            attn_mask=mask.repeat(heads // groups, 1),
            scale=scaling,
        )
        out[at : at + length] = found.view(heads, length, size).transpose(0, 1)
        at += length
    return out[None], None


AttentionInterface.register(ATTENTION, attend)
