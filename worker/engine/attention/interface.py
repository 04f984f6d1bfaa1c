"""The interface between a model and the attention of a step."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor


class LayerAttention(NamedTuple):
    """What the attention of a layer depends on besides its tensors."""

    #: Index of the layer.
    layer: int
    #: Factor of the scores.
    scaling: float
    #: The number of tokens that a token attends to, itself included; None for all before it.
    sliding_window: int | None


class Attention(Protocol):
    """Attention of a step: where its tokens are in the KV cache, and what they attend to."""

    def attend(self, query: Tensor, key: Tensor, value: Tensor, params: LayerAttention) -> Tensor:
        """Store a step's keys and values in the KV cache, and attend over the cache.

        Args:
            query: (tokens, heads, head size), rotated.
            key: (tokens, key-value heads, head size), rotated.
            value: as ``key``, not rotated.
            params: the layer's.

        Returns:
            (tokens, heads, head size).
        """
        ...
