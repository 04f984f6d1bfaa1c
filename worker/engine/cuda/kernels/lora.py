# ruff: noqa: N803  (Triton writes compile-time constants in capitals)
"""What kernels that add the factors B of adapters share.

The kernels between the products of a layer (`residual`, `activation`, `rope`) add the factors B where the
products are used anyway. A tile of tokens visits only the adapters that it has (Punica, Chen et al., MLSys
2024).

They all get ``product`` and ``lora_a_output``, the products with the base and with the factors A, (tokens,
features) or in parts to be added, (parts, tokens, features), with the strides of their rows and the
``part_stride`` of both; ``b`` and ``table`` of `LoRABWeights`; and ``adapter_ids``, each token's adapter or -1.

Each kernel has its own loop over adapters and ranks, of the loads below. The loops differ in what an
iteration multiplies (one tile; two of different projections, loaded before either is multiplied; two of one
projection, with one load of A's output), and one loop with a switch for each would be harder to read.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

#: Maximum tokens of a step, then tokens, columns and warps of a program: few tokens where there are few, so
#: that most programs have one adapter. As measured on an H100.
TileSizes = tuple[tuple[float, int, int, int], ...]


@triton.jit
def load_sum(product, offsets, part_stride, mask, NUM_PARTS: tl.constexpr):
    """Load a tile of a product, which may be the sum of several parts: float32."""
    tile = tl.load(product + offsets, mask=mask, other=0.0).to(tl.float32)
    for part in tl.static_range(1, NUM_PARTS):
        tile += tl.load(product + part * part_stride + offsets, mask=mask, other=0.0).to(tl.float32)
    return tile


@triton.jit
def adapter_range(adapter_ids, NUM_ADAPTERS: tl.constexpr):
    """Return the first and the last adapter of a tile of tokens, which are sorted by adapter."""
    first = tl.min(tl.where(adapter_ids >= 0, adapter_ids, NUM_ADAPTERS), 0)
    return first, tl.max(adapter_ids, 0)


@triton.jit
def load_entry(entry):
    """Load an entry of `LoRABWeights.table`: first column and rank of A's output, offset of B."""
    # All are multiples of `worker.engine.cuda.lora_weights.ALIGNMENT`.
    start = tl.multiple_of(tl.load(entry), 16)
    rank = tl.multiple_of(tl.load(entry + 1), 16)
    offset = tl.multiple_of(tl.load(entry + 2), 16)
    return start, rank, offset


@triton.jit
def load_a_output(
    lora_a_output,
    row_stride,
    part_stride,
    start,
    rank,
    first_rank,
    tokens,
    is_adapter,
    NUM_PARTS: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """Load the output of an adapter's factor A for its tokens, zeros for others: (tokens, ranks)."""
    ranks = first_rank + tl.arange(0, BLOCK_R)
    offsets = tokens[:, None] * row_stride + start + ranks[None, :]
    mask = is_adapter[:, None] & (ranks < rank)[None, :]
    return load_sum(lora_a_output, offsets, part_stride, mask, NUM_PARTS)


@triton.jit
def load_b(b, offset, stride, rank, first_rank, columns, column_mask, BLOCK_R: tl.constexpr):
    """Load some columns of an adapter's factor B, (ranks, columns)."""
    ranks = first_rank + tl.arange(0, BLOCK_R)
    return tl.load(
        b + offset + ranks[:, None] * stride + columns[None, :],
        mask=(ranks < rank)[:, None] & column_mask[None, :],
        other=0.0,
    )


def tile_size(sizes: TileSizes, num_tokens: int) -> tuple[int, int, int]:
    """Return tokens, columns and warps of a program."""
    return next(tile for max_tokens, *tile in sizes if num_tokens <= max_tokens)  # type: ignore[return-value]  # three sizes follow the maximum


def parts_of(product: Tensor) -> tuple[int, int]:
    """Return the number of a product's parts, and their stride in elements."""
    return (1, 0) if product.dim() == 2 else (len(product), product.stride(0))
