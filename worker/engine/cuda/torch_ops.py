"""The operations of `worker.engine.cuda.kernels` in plain PyTorch.

The kernels are tested against them. They run anywhere, and so does the engine around them.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from worker.engine.attention.paged_batch import PagedBatch
from worker.engine.batching import sampler
from worker.engine.batching.sampler import SamplingMetadata
from worker.engine.cuda.lora_weights import LoRABWeights
from worker.engine.kv.paged_cache import PagedKVCache


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalize rows, and scale their columns: (tokens, size)."""
    return torch.nn.functional.rms_norm(x, weight.shape, weight, eps)


def add_residual(
    x: Tensor, product: Tensor, lora_a_output: Tensor, lora_b: LoRABWeights, adapter_ids: Tensor
) -> Tensor:
    """Add a projection's output, with its adapters' part, to the residual ``x`` in place.

    Args:
        x: (tokens, out).
        product: the base's output, (tokens, out).
        lora_a_output: the factors A's output, (tokens, sum of ranks).
        lora_b: the factors B.
        adapter_ids: each token's adapter, (tokens,) int32.

    Returns:
        x.
    """
    return x.add_(_add_lora(product, lora_a_output, lora_b, adapter_ids))


def silu_and_mul(
    product: Tensor, lora_a_output: Tensor, lora_b: LoRABWeights, adapter_ids: Tensor
) -> Tensor:
    """Return silu(gate) * up of (tokens, gate and up side by side); arguments as for `add_residual`."""
    gate, up = _add_lora(product, lora_a_output, lora_b, adapter_ids).chunk(2, dim=-1)
    return silu(gate) * up


def rope_and_cache(
    product: Tensor,
    lora_a_output: Tensor,
    lora_b: LoRABWeights,
    batch: PagedBatch,
    cos: Tensor,
    sin: Tensor,
    cache: PagedKVCache,
    layer: int,
) -> Tensor:
    """Rotate queries and keys (Su et al., RoFormer, with Llama's order of halves); store keys and values.

    Args:
        product: the base's queries, keys and values side by side, (tokens, out).
        lora_a_output: as for `add_residual`.
        lora_b: the factors B.
        batch: the tokens.
        cos: by position, (``max_model_len``, half of a head), float32.
        sin: as ``cos``.
        cache: where keys and values are stored.
        layer: index of the layer.

    Returns:
        the queries, (tokens, heads, head size).
    """
    heads = _add_lora(product, lora_a_output, lora_b, batch.adapter_ids)
    heads = heads.view(len(product), -1, cache.head_size)
    num_kv_heads = cache.num_kv_heads
    positions = batch.positions.long().clamp(min=0)
    c, s = cos[positions][:, None], sin[positions][:, None]
    first, second = heads[:, :-num_kv_heads].float().chunk(2, dim=-1)
    rotated = torch.cat([first * c - second * s, second * c + first * s], dim=-1).to(heads.dtype)
    key, value = rotated[:, -num_kv_heads:], heads[:, -num_kv_heads:]
    reshape_and_cache(key, value, batch, cache, layer)
    return rotated[:, :-num_kv_heads].contiguous()


def reshape_and_cache(
    key: Tensor, value: Tensor, batch: PagedBatch, cache: PagedKVCache, layer: int
) -> None:
    """Store the tokens' keys and values, (tokens, key-value heads, head size)."""
    positions = batch.positions.long().clamp(min=0)
    blocks = batch.block_tables[batch.rows.long(), positions // cache.block_size].long()
    blocks = blocks * (batch.positions >= 0)  # padding tokens are stored in block 0
    slots = blocks, slice(None), positions % cache.block_size
    cache.keys[layer][slots] = key
    cache.values[layer][slots] = value


def paged_attention(
    queries: Tensor,
    batch: PagedBatch,
    cache: PagedKVCache,
    layer: int,
    scaling: float,
    sliding_window: int | None,
) -> Tensor:
    """Attend over each sequence's keys and values up to the token's own.

    Args:
        queries: (tokens, heads, head size).
        batch: the tokens.
        cache: keys and values.
        layer: index of the layer.
        scaling: factor of the scores.
        sliding_window: as `worker.engine.attention.interface.LayerAttention` has it.

    Returns:
        (tokens, heads, head size); zeros for padding tokens.
    """
    keys, values = cache.keys[layer], cache.values[layer]
    kv_len = batch.block_tables.shape[1] * cache.block_size
    tables = batch.block_tables[batch.rows.long()].long()
    shape = (len(queries), cache.num_kv_heads, kv_len, cache.head_size)
    k, v = (x[tables].transpose(1, 2).reshape(shape) for x in (keys, values))
    positions = batch.positions[:, None]
    kv_positions = torch.arange(kv_len, device=queries.device)
    visible = kv_positions <= positions
    if sliding_window is not None:
        visible &= kv_positions > positions - sliding_window
    q = queries.view(len(queries), cache.num_kv_heads, -1, cache.head_size)
    hidden = ~visible[:, None, :, None]
    # Slots that are not visible may hold anything, also NaN.
    scores = torch.matmul(q, k.masked_fill(hidden, 0).transpose(-1, -2)).float() * scaling
    scores = scores.masked_fill(~visible[:, None, None], -torch.inf)
    weights = scores.softmax(-1).nan_to_num(0).to(v.dtype)
    return torch.matmul(weights, v.masked_fill(hidden, 0)).view_as(queries)


def sample(
    logits: Tensor, temperature: Tensor, top_k: Tensor, noise_seed: Tensor, max_top_k: int
) -> tuple[Tensor, Tensor]:
    """Sample as `worker.engine.batching.sampler.sample`, without top-p. A CUDA graph can capture it.

    Args:
        logits: (rows, vocabulary), any float dtype.
        temperature: (rows,) float32; 0 is greedy.
        top_k: (rows,) int64, at most ``max_top_k``.
        noise_seed: (rows,) int64, as in `SamplingMetadata`.
        max_top_k: the largest possible top-k.

    Returns:
        token ids, (rows,) int64, and whether the row's logits were finite, (rows,) bool.
    """
    metadata = SamplingMetadata(
        temperature,
        top_k,
        top_p=temperature,  # not read
        noise_seed=noise_seed,
        max_top_k=max_top_k,
        any_greedy=True,
        any_random=True,
        any_top_p=False,
    )
    return sampler.sample(logits, metadata, capturable=True)


def prefill_tile_tokens(group_size: int) -> int:
    """Return the tokens of a prefill tile; any number does here."""
    del group_size
    return 32


def use_small_batch_linear(x: Tensor, weight: Tensor) -> bool:
    """Return whether `small_batch_linear` is faster than PyTorch's product; arguments as for it."""
    del x, weight
    return False


def small_batch_linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply few rows, (tokens, in), with (out, in), in parts whose sum is the product.

    Returns:
        (1, tokens, out).
    """
    return torch.nn.functional.linear(x, weight)[None]


def _add_lora(
    product: Tensor, lora_a_output: Tensor, lora_b: LoRABWeights, adapter_ids: Tensor
) -> Tensor:
    output = product.clone()
    for part in lora_b.parts:
        is_adapter = (adapter_ids == part.adapter_id)[:, None]
        output[:, part.columns] += (lora_a_output[:, part.ranks] * is_adapter) @ part.b
    return output
