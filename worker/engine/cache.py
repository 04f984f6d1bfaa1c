"""Keys and values of all sequences, allocated once, and the attention over them."""

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

from worker.engine.prefixes import Place

#: The name under which transformers finds `attend`.
ATTENTION = "helixq"
#: Attention of decoding rows reaches over the longest of them, rounded up to a multiple.
ROUND = 64


class KVCache:
    """A tensor of keys and one of values for each layer: rows x heads x context x head size."""

    def __init__(
        self,
        config: PreTrainedConfig,
        *,
        rows: int,
        context: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (rows, heads, context, size)
        layers = range(config.num_hidden_layers)
        self.keys = [_zeros(shape, dtype, device) for _ in layers]
        self.values = [_zeros(shape, dtype, device) for _ in layers]
        self.context = context

    def copy(self, place: Place) -> None:
        """Let a row take over what another one holds."""
        for tensor in (*self.keys, *self.values):
            tensor[place.row, :, : place.length] = tensor[place.source, :, : place.length]

    def clear(self, row: int) -> None:
        """Make a row's keys and values numbers again."""
        for tensor in (*self.keys, *self.values):
            tensor[row] = 0

    @property
    def nbytes(self) -> int:
        return 2 * len(self.keys) * self.keys[0].nbytes

    @staticmethod
    def bytes_per_token(config: PreTrainedConfig, dtype: torch.dtype) -> int:
        """What one token of one row takes in all layers."""
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
    """Successive tokens of one sequence within a step."""

    row: int
    #: Position of the first one in its sequence.
    start: int
    #: How many.
    length: int


@dataclass
class Layout:
    """Where the tokens of a step belong: one for each decoding row, then whole segments."""

    cache: KVCache
    #: Rows of the decoding sequences, and the positions of their tokens.
    decoding: Sequence[int]
    at: Sequence[int]
    segments: Sequence[Segment]
    #: Of all tokens of the step: int64.
    rows: Tensor = field(init=False)
    positions: Tensor = field(init=False)
    #: Masks by the sliding window that they keep; layers share them.
    _masks: dict[int | None, tuple[Tensor, list[Tensor]]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        device = self.cache.keys[0].device
        rows, positions = list(self.decoding), list(self.at)
        for segment in self.segments:
            rows += [segment.row] * segment.length
            positions += range(segment.start, segment.start + segment.length)
        self.rows = torch.tensor(rows, device=device)
        self.positions = torch.tensor(positions, device=device)
        longest = max(self.at, default=-1) + 1
        self.reach = min(self.cache.context, -(-longest // ROUND) * ROUND)
        self._arrange(rows[: len(self.decoding)])

    def _arrange(self, decoding: list[int]) -> None:
        """Choose the rows of the cache that the decoding tokens look at.

        A view from the lowest to the highest row costs nothing, and the rows between that do not
        decode cost their attention; picking single rows copies them.
        """
        count = len(decoding)
        low, high = min(decoding, default=0), max(decoding, default=-1) + 1
        self.view = slice(low, high)
        self.picked = high - low > 2 * count
        #: How many rows are looked at, and which of them each decoding token's is.
        self.seen = count if self.picked else high - low
        order = list(range(count)) if self.picked else [row - low for row in decoding]
        self.ordered = order == list(range(self.seen))
        self.order = torch.tensor(order, dtype=torch.int64, device=self.rows.device)

    def look(self, tensor: Tensor) -> Tensor:
        """Return a layer's keys or values as the decoding tokens see them.

        Args:
            tensor: (rows, heads, context, head size).

        Returns:
            (seen, heads, reach, head size).
        """
        if self.picked:
            return tensor[self.rows[: len(self.decoding)], :, : self.reach]
        return tensor[self.view, :, : self.reach]

    def masks(self, window: int | None) -> tuple[Tensor, list[Tensor]]:
        """Return what the decoding rows and each segment may see.

        Args:
            window: a token sees so many tokens, itself included; all before it if None.

        Returns:
            (seen, 1, 1, reach), and for each segment (length, end): bool.
        """
        if window not in self._masks:
            self._masks[window] = (self._decoding_mask(window), self._segment_masks(window))
        return self._masks[window]

    def _decoding_mask(self, window: int | None) -> Tensor:
        device = self.positions.device
        # A row that does not decode sees its first token: what comes out is dropped, but is a number.
        at = torch.zeros(self.seen, dtype=torch.int64, device=device)
        at[self.order] = self.positions[: len(self.decoding)]
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
    """Store a step's keys and values, and attend over the cache: transformers' attention interface.

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
    keys[layout.rows, :, layout.positions] = key[0].transpose(0, 1)
    values[layout.rows, :, layout.positions] = value[0].transpose(0, 1)
    heads, tokens, size = query.shape[1:]
    groups = keys.shape[1]
    # Query heads that share a key head become queries of one head: nothing is repeated.
    queries = query[0].view(groups, heads // groups, tokens, size)
    decoding_mask, segment_masks = layout.masks(sliding_window)
    out = query.new_empty(tokens, heads, size)
    count = len(layout.decoding)
    if count:
        q = queries[:, :, :count].permute(2, 0, 1, 3)
        if not layout.ordered:
            rows = q.new_zeros(layout.seen, *q.shape[1:])
            rows[layout.order] = q
            q = rows
        found = scaled_dot_product_attention(
            q,
            layout.look(keys),
            layout.look(values),
            attn_mask=decoding_mask,
            scale=scaling,
        )
        if not layout.ordered:
            found = found[layout.order]
        out[:count] = found.reshape(count, heads, size)
    at = count
    for segment, mask in zip(layout.segments, segment_masks, strict=True):
        length, end = segment.length, segment.start + segment.length
        found = scaled_dot_product_attention(
            queries[:, :, at : at + length].reshape(1, groups, -1, size),
            keys[segment.row, :, :end][None],
            values[segment.row, :, :end][None],
            attn_mask=mask.repeat(heads // groups, 1),
            scale=scaling,
        )
        out[at : at + length] = found.view(heads, length, size).transpose(0, 1)
        at += length
    return out[None], None


AttentionInterface.register(ATTENTION, attend)
