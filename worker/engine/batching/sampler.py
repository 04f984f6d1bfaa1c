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
#: How many tokens a row may have beyond its top-k, as in 16 bits many scores are equal: those that share
#: the last one's, in the order of their ids.
TIED = 32
#: What the likeliest token counts in a nucleus. Sums of whole numbers are the same in any order.
_UNIT = 2.0**40
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
    greedy: bool
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
            top_p=torch.tensor([s.top_p for s in samplings], dtype=torch.float64, device=device),
            noise=noise_of(seeds, at),
            most=max(drawn, default=1),
            greedy=len(drawn) < len(top_k),
            sampled=bool(drawn),
            nucleus=any(s.top_p < 1 and s.temperature for s in samplings),
        )


def noise_of(seeds: Tensor, positions: Tensor) -> Tensor:
    """Mix seeds with how many new tokens there are already: (rows,) int64 each."""
    return _mix(_mix(seeds) + positions)


def sample(logits: Tensor, rows: Rows, *, recorded: bool = False) -> tuple[Tensor, Tensor]:
    """Draw a token for each row: temperature, then top-k, then top-p, as transformers does.

    A row's candidates are a function of its own scores and its own sampling: tokens that share the
    score of the k-th are candidates, up to `TIED` more than k, those with the least ids first. In
    top-p, tokens of equal scores are all in or all out. Greedy's token is the first of the likeliest.

    Args:
        logits: (rows, vocabulary), any float dtype.
        rows: how.
        recorded: whether the host may look at nothing.

    Returns:
        the tokens, (rows,) int64, and whether the row's scores were numbers, (rows,) bool.
    """
    # The largest score is a NaN if any is, and infinite if one is.
    sound = logits.amax(dim=-1).isfinite()
    if not rows.sampled:
        return logits.argmax(dim=-1), sound
    scores, tokens, out = _candidates(logits, rows, recorded)
    greedy = rows.temperature == 0
    scores = scores / torch.where(greedy, 1.0, rows.temperature)[:, None]
    if rows.nucleus:
        weights = (scores - scores[:, :1]).double().exp() * _UNIT
        weights = weights.masked_fill(out, 0).nan_to_num(0, 0, 0).long()
        until = weights.cumsum(-1)
        # A token goes if those with higher scores have the share already.
        before = (until - weights).gather(1, _first_equal(scores))
        out = out | (before >= rows.top_p[:, None] * until[:, -1:])
        out[:, 0] = False  # the first one stays
    noisy = scores.double() + _gumbel(rows.noise, tokens)
    noisy = noisy.masked_fill(out, -torch.inf)
    drawn = tokens.gather(1, noisy.argmax(-1)[:, None])[:, 0]
    if rows.greedy:
        drawn = torch.where(greedy, logits.argmax(dim=-1), drawn)
    return drawn, sound


def _candidates(logits: Tensor, rows: Rows, recorded: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Find each row's likeliest tokens, enough for every row.

    Returns:
        their scores in descending order, float32; their ids; and which of them top-k leaves out: each
        (rows, candidates). Which tokens are left does not depend on how many there are.
    """
    vocabulary = logits.shape[-1]
    width = min(rows.most + TIED, vocabulary)
    most = (rows.top_k + TIED).clamp(max=vocabulary)[:, None]
    at = (rows.top_k - 1).clamp(max=width - 1)[:, None]
    if logits.device.type == "cpu" and not recorded:
        scores, tokens = logits.topk(width, dim=-1)
        # Which of several equal scores topk finds is its own affair. It rarely matters.
        crowded = scores.gather(1, most.clamp(max=width - 1)) >= scores.gather(1, at)
        crowded &= (most < vocabulary) & (rows.temperature > 0)[:, None]
        if crowded.any():
            again = crowded[:, 0].nonzero()[:, 0]
            scores[again], tokens[again] = in_order(logits[again], width)
    else:  # to look whether it matters would make the host wait for the device
        scores, tokens = in_order(logits, width)
    out = scores < scores.gather(1, at)
    out |= torch.arange(width, device=logits.device) >= most
    return scores.float(), tokens, out


def in_order(logits: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Return the ``width`` likeliest of (rows, tokens), equal scores in the order of their ids.

    No two tokens have the same key: the score's bits, made to rise with it, above the id's.
    """
    vocabulary = logits.shape[-1]
    ids = torch.arange(vocabulary, device=logits.device)
    short = logits.dtype.itemsize == 2 and vocabulary <= 2**16
    # 32 bits are found in half the time. -0.0 becomes 0.0, which it equals.
    bits = (logits + 0.0).view(torch.int16) if short else (logits.float() + 0.0).view(torch.int32)
    bits = bits ^ ((bits >> (15 if short else 31)) & torch.iinfo(bits.dtype).max)
    keys = (bits.int() << 16) + (0xFFFF - ids).int() if short else (bits.long() << 32) - ids
    tokens = keys.topk(width, dim=-1).indices
    return logits.gather(1, tokens), tokens


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
