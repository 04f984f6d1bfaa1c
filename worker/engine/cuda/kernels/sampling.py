# ruff: noqa: N803  (Triton writes compile-time constants in capitals)
"""Samples the next token of every row, as `worker.engine.batching.sampler` does, in two kernels and a topk."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.engine.batching import sampler
from worker.engine.cuda.kernels.common import FUSED_MULTIPLY_ADD, launch

#: Logits of a program that makes sort keys.
SORT_KEYS_BLOCK = 2048


@triton.jit
def _sort_keys_kernel(
    logits,
    logits_stride,
    keys,
    VOCAB_SIZE: tl.constexpr,
    SHORT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Store the sort keys of `sampler.stable_topk`. NaN has the largest one, whatever its sign."""
    row = tl.program_id(0).to(tl.int64)
    ids = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = ids < VOCAB_SIZE
    logit = tl.load(logits + row * logits_stride + ids, mask=mask, other=0.0)
    value = logit.to(tl.float32)
    bits = logit.to(tl.int16, bitcast=True) if SHORT else value.to(tl.int32, bitcast=True)
    bits = bits.to(tl.int32)
    largest: tl.constexpr = 0x7FFF if SHORT else 0x7FFFFFFF
    bits = tl.where(value == 0, 0, bits)  # -0.0 equals 0.0
    bits = tl.where(value == value, bits, largest)
    bits = bits ^ ((bits >> 31) & largest)
    key = (bits << 16) + (0xFFFF - ids) if SHORT else (bits.to(tl.int64) << 32) - ids
    tl.store(keys + row * VOCAB_SIZE + ids, key, mask=mask)


@triton.jit
def _mix(x):
    """Hash int64 numbers, as `worker.engine.batching.sampler` does."""
    # As signed numbers of 64 bits: 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB.
    x = (x + 1) * -7046029254386353131
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@triton.jit
def _sample_kernel(
    logits,
    logits_stride,
    token_ids,
    temperature,
    top_k,
    noise_seed,
    sampled,
    is_finite,
    WIDTH: tl.constexpr,
    MAX_TIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    ranks = tl.arange(0, BLOCK)
    mask = ranks < WIDTH
    logits += row * logits_stride
    token_ids += row * WIDTH
    token_id = tl.load(token_ids + ranks, mask=mask, other=0)
    score = tl.load(logits + token_id, mask=mask, other=float("-inf")).to(tl.float32)
    t = tl.load(temperature + row)
    k = tl.load(top_k + row)
    kth_token_id = tl.load(token_ids + tl.minimum(k, WIDTH) - 1)
    kth_score = tl.load(logits + kth_token_id).to(tl.float32)
    is_candidate = mask & (score >= kth_score) & (ranks < k + MAX_TIES)
    greedy = t == 0
    bits = (_mix(tl.load(noise_seed + row) + token_id) >> 11) & 0x1FFFFFFFFFFFFF
    uniform = (bits.to(tl.float64) + 0.5) * 1.1102230246251565e-16
    noisy = (score / tl.where(greedy, 1.0, t)).to(tl.float64) - tl.log(-tl.log(uniform))
    noisy = tl.where(is_candidate, noisy, float("-inf"))
    # A row whose logits are not finite has any of its tokens.
    best = tl.where(greedy, 0, tl.argmax(noisy, 0))
    tl.store(sampled + row, tl.sum(tl.where(ranks == best, token_id, 0), 0))
    # The first score is NaN if any logit is, and infinite if one is.
    first_score = tl.sum(tl.where(ranks == 0, score, 0.0), 0)
    tl.store(is_finite + row, tl.abs(first_score) < float("inf"))


def sample(
    logits: Tensor, temperature: Tensor, top_k: Tensor, noise_seed: Tensor, max_top_k: int
) -> tuple[Tensor, Tensor]:
    num_rows, vocab_size = logits.shape
    width = min(max_top_k + sampler.MAX_TIES, vocab_size)
    keys = logits.new_empty(logits.shape, dtype=sampler.sort_key_dtype(logits))
    launch(
        _sort_keys_kernel, (num_rows, triton.cdiv(vocab_size, SORT_KEYS_BLOCK)),
        logits, logits.stride(0), keys, VOCAB_SIZE=vocab_size, SHORT=keys.dtype is torch.int32,
        BLOCK=SORT_KEYS_BLOCK, num_warps=4, **FUSED_MULTIPLY_ADD,
    )  # fmt: skip
    token_ids = keys.topk(width, dim=-1).indices
    sampled = torch.empty_like(noise_seed)
    is_finite = torch.empty_like(noise_seed, dtype=torch.bool)
    launch(
        _sample_kernel, (num_rows,),
        logits, logits.stride(0), token_ids, temperature, top_k, noise_seed, sampled, is_finite,
        WIDTH=width, MAX_TIES=sampler.MAX_TIES, BLOCK=triton.next_power_of_2(width), num_warps=1,
        **FUSED_MULTIPLY_ADD,
    )  # fmt: skip
    return sampled, is_finite
