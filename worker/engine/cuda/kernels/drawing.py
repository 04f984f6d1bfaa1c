# ruff: noqa: N803  (Triton writes what is fixed when a kernel is compiled in capitals)
"""Draws the next token of every row, as `worker.engine.batching.sampler` does, in one kernel."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from worker.engine.batching import sampler
from worker.engine.cuda.kernels.common import FUSED


@triton.jit
def _mix(x):
    """Hash int64 numbers, as `worker.engine.batching.sampler` does."""
    # As numbers of 64 bits with a sign: 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB.
    x = (x + 1) * -7046029254386353131
    x = (x ^ ((x >> 30) & 0x3FFFFFFFF)) * -4658895280553007687
    x = (x ^ ((x >> 27) & 0x1FFFFFFFFF)) * -7723592293110705685
    return x ^ ((x >> 31) & 0x1FFFFFFFF)


@triton.jit
def _draw_kernel(
    scores,
    tokens,
    temperature,
    top_k,
    noise,
    drawn,
    WIDTH: tl.constexpr,
    TIED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, BLOCK)
    there = places < WIDTH
    score = tl.load(scores + row * WIDTH + places, mask=there, other=float("-inf")).to(tl.float32)
    token = tl.load(tokens + row * WIDTH + places, mask=there, other=0)
    heat = tl.load(temperature + row)
    most = tl.load(top_k + row)
    last = tl.load(scores + row * WIDTH + tl.minimum(most, WIDTH) - 1).to(tl.float32)
    left = there & (score >= last) & (places < most + TIED)
    greedy = heat == 0
    bits = (_mix(tl.load(noise + row) + token) >> 11) & 0x1FFFFFFFFFFFFF
    uniform = (bits.to(tl.float64) + 0.5) * 1.1102230246251565e-16
    noisy = (score / tl.where(greedy, 1.0, heat)).to(tl.float64) - tl.log(-tl.log(uniform))
    noisy = tl.where(left, noisy, float("-inf"))
    # A row of which nothing is left has scores that are no numbers, which is looked at apart.
    best = tl.where(greedy, 0, tl.argmax(noisy, 0))
    tl.store(drawn + row, tl.sum(tl.where(places == best, token, 0), 0))


def draw(
    logits: Tensor, temperature: Tensor, top_k: Tensor, noise: Tensor, most: int
) -> tuple[Tensor, Tensor]:
    width = min(most + sampler.TIED, logits.shape[-1])
    scores, tokens = sampler.in_order(logits, width)
    drawn = torch.empty_like(noise)
    _draw_kernel[(len(logits),)](
        scores, tokens, temperature, top_k, noise, drawn,
        width, sampler.TIED, triton.next_power_of_2(width), num_warps=1, **FUSED,
    )  # fmt: skip
    return drawn, logits.amax(dim=-1).isfinite()
