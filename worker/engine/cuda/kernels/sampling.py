# ruff: noqa: N803  (Triton writes compile-time constants in capitals)
"""Samples the next token of every row, as `worker.engine.batching.sampler` does, in one kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.engine.batching import sampler
from worker.engine.cuda.kernels.common import FUSED_MULTIPLY_ADD, launch


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
    scores,
    token_ids,
    temperature,
    top_k,
    noise_seed,
    sampled,
    WIDTH: tl.constexpr,
    MAX_TIES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    ranks = tl.arange(0, BLOCK)
    mask = ranks < WIDTH
    score = tl.load(scores + row * WIDTH + ranks, mask=mask, other=float("-inf")).to(tl.float32)
    token_id = tl.load(token_ids + row * WIDTH + ranks, mask=mask, other=0)
    t = tl.load(temperature + row)
    k = tl.load(top_k + row)
    kth_score = tl.load(scores + row * WIDTH + tl.minimum(k, WIDTH) - 1).to(tl.float32)
    is_candidate = mask & (score >= kth_score) & (ranks < k + MAX_TIES)
    greedy = t == 0
    bits = (_mix(tl.load(noise_seed + row) + token_id) >> 11) & 0x1FFFFFFFFFFFFF
    uniform = (bits.to(tl.float64) + 0.5) * 1.1102230246251565e-16
    noisy = (score / tl.where(greedy, 1.0, t)).to(tl.float64) - tl.log(-tl.log(uniform))
    noisy = tl.where(is_candidate, noisy, float("-inf"))
    # A row without candidates has logits that are not finite, which the caller checks.
    best = tl.where(greedy, 0, tl.argmax(noisy, 0))
    tl.store(sampled + row, tl.sum(tl.where(ranks == best, token_id, 0), 0))


def sample(
    logits: Tensor, temperature: Tensor, top_k: Tensor, noise_seed: Tensor, max_top_k: int
) -> tuple[Tensor, Tensor]:
    width = min(max_top_k + sampler.MAX_TIES, logits.shape[-1])
    scores, token_ids = sampler.stable_topk(logits, width)
    sampled = torch.empty_like(noise_seed)
    launch(
        _sample_kernel, (len(logits),),
        scores, token_ids, temperature, top_k, noise_seed, sampled,
        width, sampler.MAX_TIES, triton.next_power_of_2(width), num_warps=1, **FUSED_MULTIPLY_ADD,
    )  # fmt: skip
    return sampled, logits.amax(dim=-1).isfinite()
