"""What `worker.engine.cuda.kernels` computes, in plain PyTorch: what they are tested against.

It runs anywhere, and so do the parts of an engine around it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import silu

from worker.engine.attention.paged_batch import FlatBatch
from worker.engine.batching import sampler
from worker.engine.cuda.lora_weights import Expansion
from worker.engine.kv.paged_cache import BlockCache


def rms_norm(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """Normalise rows and weigh their columns: (tokens, size)."""
    return torch.nn.functional.rms_norm(x, weight.shape, weight, epsilon)


def add(x: Tensor, product: Tensor, inner: Tensor, lora: Expansion, adapters: Tensor) -> Tensor:
    """Add a product and what the tokens' adapters give to ``x``, in place.

    Args:
        x: (tokens, out).
        product: of the base, (tokens, out).
        inner: of the first factors, (tokens, sum of ranks).
        lora: the second factors.
        adapters: each token's by its index, (tokens,) int32.

    Returns:
        x.
    """
    return x.add_(_expanded(product, inner, lora, adapters))


def swiglu(product: Tensor, inner: Tensor, lora: Expansion, adapters: Tensor) -> Tensor:
    """Return silu(gate) x up of (tokens, gate and up side by side); arguments as for `add`."""
    gate, up = _expanded(product, inner, lora, adapters).chunk(2, dim=-1)
    return silu(gate) * up


def heads(
    product: Tensor,
    inner: Tensor,
    lora: Expansion,
    batch: FlatBatch,
    cos: Tensor,
    sin: Tensor,
    cache: BlockCache,
    layer: int,
) -> Tensor:
    """Rotate queries and keys (Su et al., RoFormer, in Llama's order of halves); store keys and values.

    Args:
        product: queries', keys' and values' heads side by side, (tokens, out); `inner`, `lora` as for
            `add`.
        batch: where the tokens belong.
        cos: by position, (context, half of a head), float32.
        sin: likewise.
        cache: where keys and values go.
        layer: which of its.

    Returns:
        the queries, (tokens, heads, head size).
    """
    found = _expanded(product, inner, lora, batch.adapters).view(len(product), -1, cache.size)
    shared = cache.heads
    at = batch.positions.long().clamp(min=0)
    c, s = cos[at][:, None], sin[at][:, None]
    first, second = found[:, :-shared].float().chunk(2, dim=-1)
    turned = torch.cat([first * c - second * s, second * c + first * s], dim=-1).to(found.dtype)
    store(turned[:, -shared:], found[:, -shared:], batch, cache, layer)
    return turned[:, :-shared].contiguous()


def store(key: Tensor, value: Tensor, batch: FlatBatch, cache: BlockCache, layer: int) -> None:
    """Store the tokens' keys and values, (tokens, key-value heads, head size)."""
    at = batch.positions.long().clamp(min=0)
    blocks = batch.tables[batch.rows.long(), at // cache.block_size].long()
    blocks = blocks * (batch.positions >= 0)  # what fills up goes to the block of nobody
    places = blocks, slice(None), at % cache.block_size
    cache.keys[layer][places] = key
    cache.values[layer][places] = value


def attend(
    queries: Tensor,
    batch: FlatBatch,
    cache: BlockCache,
    layer: int,
    scaling: float,
    window: int | None,
) -> Tensor:
    """Attend over the sequences' keys and values up to each token's own.

    Args:
        queries: (tokens, heads, head size).
        batch: where the tokens belong.
        cache: keys and values.
        layer: which of its.
        scaling: of the scores.
        window: a token sees so many tokens, itself included; all before it if None.

    Returns:
        (tokens, heads, head size); zeros for what fills up.
    """
    keys, values = cache.keys[layer], cache.values[layer]
    reach = batch.tables.shape[1] * cache.block_size
    tables = batch.tables[batch.rows.long()].long()
    # (tokens, heads, reach, size)
    shape = (len(queries), cache.heads, reach, cache.size)
    k, v = (x[tables].transpose(1, 2).reshape(shape) for x in (keys, values))
    positions = batch.positions[:, None]
    others = torch.arange(reach, device=queries.device)
    sees = others <= positions
    if window is not None:
        sees &= others > positions - window
    q = queries.view(len(queries), cache.heads, -1, cache.size)
    seen = sees[:, None, :, None]
    # What is not seen may be anything, a NaN too.
    scores = torch.matmul(q, k.masked_fill(~seen, 0).transpose(-1, -2)).float() * scaling
    scores = scores.masked_fill(~sees[:, None, None], -torch.inf)
    shares = scores.softmax(-1).nan_to_num(0).to(v.dtype)
    return torch.matmul(shares, v.masked_fill(~seen, 0)).view_as(queries)


def draw(
    logits: Tensor, temperature: Tensor, top_k: Tensor, noise: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    """Draw as `worker.engine.batching.sampler.sample` does, of rows without top-p; the host looks at nothing.

    Args:
        logits: (rows, vocabulary), any float dtype.
        temperature: (rows,) float32; 0 is greedy.
        top_k: (rows,) int64, at most ``most``.
        noise: (rows,) int64, as `worker.engine.batching.sampler.Rows` has it.
        most: the largest top-k that there may be.

    Returns:
        as `worker.engine.batching.sampler.sample`.
    """
    rows = sampler.Rows(temperature, top_k, temperature, noise, most, True, True, False)
    return sampler.sample(logits, rows, recorded=True)


def work_tokens(group: int) -> int:
    """Return how many successive tokens of a prompt are a piece of work; any number does."""
    del group
    return 32


def few(x: Tensor, weight: Tensor) -> bool:
    """Whether `linear` is the faster product; arguments as for it."""
    del x, weight
    return False


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """Multiply a few rows, (tokens, in), with a matrix, (out, in), in parts that add up: (1, tokens, out)."""
    return torch.nn.functional.linear(x, weight)[None]


def _expanded(product: Tensor, inner: Tensor, lora: Expansion, adapters: Tensor) -> Tensor:
    found = product.clone()
    for part in lora.parts:
        mine = (adapters == part.adapter)[:, None]
        found[:, part.columns] += (inner[:, part.ranks] * mine) @ part.b
    return found
