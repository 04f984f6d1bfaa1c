"""Draws the next token of every row at once; the noise is a function of seed and position.

Gumbel-max: the token with the largest (log-probability + Gumbel noise) is a draw from the
distribution. The noise of a token is a hash of the row's seed, the position and the token, so it is
the same whoever else is in the batch, however many candidates are looked at, and after a restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.pipeline import Sampling

#: Below it, scores divided by the temperature overflow; the likeliest token is as good.
LEAST_TEMPERATURE = 1e-3
#: Candidates looked at beyond the largest top-k, where scores have 16 bits and so are often equal: those
#: that share the last one's are candidates too.
TIED = 32
#: Steps of splitmix64 (Steele, Lea and Flood, OOPSLA 2014), as int64.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


@dataclass(frozen=True)
class Rows:
    """How the rows of a step are to be drawn: tensors (rows,)."""

    #: 0 is greedy.
    temperature: Tensor
    #: int64; the vocabulary's size where all tokens count.
    top_k: Tensor
    top_p: Tensor
    #: int64: the seeds, mixed with the positions of the tokens to draw.
    noise: Tensor
    #: The largest top_k, and whether any row needs each part.
    most: int
    sampled: bool
    nucleus: bool

    @classmethod
    def of(
        cls,
        samplings: Sequence[Sampling],
        positions: Sequence[int],
        vocabulary: int,
        device: torch.device,
    ) -> Rows:
        """Collect the rows of a step.

        Args:
            samplings: how each is drawn.
            positions: how many new tokens each has already.
            vocabulary: number of tokens.
            device: where the scores are.
        """
        temperatures = [
            s.temperature if s.temperature >= LEAST_TEMPERATURE else 0.0 for s in samplings
        ]
        top_k = [min(s.top_k or vocabulary, vocabulary) for s in samplings]
        drawn = [k for k, t in zip(top_k, temperatures, strict=True) if t]
        seeds = torch.tensor([s.seed for s in samplings], device=device)
        at = torch.tensor(positions, device=device)
        return cls(
            temperature=torch.tensor(temperatures, device=device),
            top_k=torch.tensor(top_k, device=device),
            top_p=torch.tensor([s.top_p for s in samplings], device=device),
            noise=_mix(_mix(seeds) + at),
            most=max(drawn, default=1),
            sampled=bool(drawn),
            nucleus=any(s.top_p < 1 and s.temperature for s in samplings),
        )


def sample(logits: Tensor, rows: Rows) -> tuple[Tensor, Tensor]:
    """Draw a token for each row: temperature, then top-k, then top-p, as transformers does.

    Tokens of equal scores are all in or all out; which of them is greedy's is the first. So the draw
    depends neither on the order in which they are found nor on how many other rows look at.

    Args:
        logits: (rows, vocabulary), any float dtype.
        rows: how.

    Returns:
        the tokens, (rows,) int64, and whether the row's scores were numbers, (rows,) bool.
    """
    # The largest score is a NaN if any is, and infinite if one is.
    highest, first = logits.max(dim=-1)
    sound = highest.isfinite()
    if not rows.sampled:
        return first, sound
    tied = 0 if logits.dtype == torch.float32 else TIED
    most = min(rows.most + tied, logits.shape[-1])
    scores, tokens = logits.topk(most, dim=-1)  # in descending order
    scores = scores.float()
    greedy = rows.temperature == 0
    last = scores.gather(1, (rows.top_k.clamp(max=most) - 1)[:, None])
    out = scores < last
    scores = scores / torch.where(greedy, 1.0, rows.temperature)[:, None]
    if rows.nucleus:
        scores = scores.masked_fill(out, -torch.inf)
        probabilities = scores.softmax(-1)
        # A token goes if those with higher scores have the share already.
        before = probabilities.cumsum(-1) - probabilities
        out = out | (before.gather(1, _first_equal(scores)) >= rows.top_p[:, None])
        out[:, 0] = False  # the first one stays
    noisy = scores.double() + _gumbel(rows.noise, tokens)
    noisy = noisy.masked_fill(out, -torch.inf)
    drawn = tokens.gather(1, noisy.argmax(-1)[:, None])[:, 0]
    return torch.where(greedy, first, drawn), sound


def _first_equal(scores: Tensor) -> Tensor:
    """Return for each of (rows, candidates) in descending order the first one with the same score."""
    rank = torch.arange(scores.shape[-1], device=scores.device).expand_as(scores)
    same = torch.zeros_like(scores, dtype=torch.bool)
    same[:, 1:] = scores[:, 1:] == scores[:, :-1]
    return rank.masked_fill(same, 0).cummax(-1).values


def _gumbel(noise: Tensor, tokens: Tensor) -> Tensor:
    """Return standard Gumbel noise for (rows,) hashes and (rows, candidates) tokens: float64."""
    bits = _mix(noise[:, None] + tokens) >> 11 & 2**53 - 1
    uniform = (bits.double() + 0.5) * 2.0**-53
    return -(-uniform.log()).log()


def _mix(x: Tensor) -> Tensor:
    """Hash int64 numbers, as splitmix64 does."""
    x = (x + 1) * _GAMMA
    for shift, factor in _MIX:
        x = (x ^ (x >> shift & 2 ** (64 - shift) - 1)) * factor
    return x ^ (x >> 31 & 2**33 - 1)
