"""The tokens of a step over pages, as one flat batch: decoding tokens first, then prefill chunks."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class PagedBatch:
    """Input and attention metadata of a step; tensors are int32 on the device but for ``input_ids``."""

    #: (tokens,) int64.
    input_ids: Tensor
    #: Each token's adapter, (tokens,); -1 for padding tokens.
    adapter_ids: Tensor
    #: Each token's row of ``block_tables``, (tokens,).
    rows: Tensor
    #: Each token's position in its sequence, (tokens,); -1 for padding tokens.
    positions: Tensor
    #: The blocks of each row's sequence in the order of its tokens, (rows, blocks).
    block_tables: Tensor
    #: The number of decode tokens. They come first, and each attends as a single query.
    num_decode_tokens: int
    #: Greater than the position of every decode token.
    max_kv_len: int
    #: Tiles of the other tokens, of at most `tile_tokens` successive tokens of one sequence: index of the
    #: first token, number of tokens, row, and position of the first token, (tiles, 4). None without any.
    prefill_tiles: Tensor | None = None
    tile_tokens: int = 1
