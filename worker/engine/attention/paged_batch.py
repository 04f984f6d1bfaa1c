"""The tokens of a step as one flat batch: those that decode first, then pieces of prompts."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class FlatBatch:
    """Where the tokens of a step belong; all tensors int32 on the device but for ``ids``."""

    #: (tokens,) int64.
    ids: Tensor
    #: Each token's adapter by its index; -1 for what only fills up: (tokens,).
    adapters: Tensor
    #: Each token's row of ``tables``, (tokens,).
    rows: Tensor
    #: Each token's position in its sequence, (tokens,); -1 for what only fills up.
    positions: Tensor
    #: The blocks of each row's sequence in the order of its tokens, (rows, blocks).
    tables: Tensor
    #: So many tokens at the beginning are one of their sequence each.
    decoding: int
    #: No decoding token's position is this one or beyond.
    reach: int
    #: Pieces of the others, of `work_tokens` tokens at the most: first token of the step, number of
    #: tokens, row, and position of the first one, (pieces, 4); None if there are none.
    work: Tensor | None = None
    work_tokens: int = 1
