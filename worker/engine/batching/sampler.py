"""Samples the next token of every row at once. The noise is a function of seed and position.

Gumbel-max: the token with the largest (log-probability + Gumbel noise) is a sample from the
distribution. A token's noise is a hash of the row's seed, the position and the token id, so it does not
depend on the rest of the batch, on the number of candidates, or on a restart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from jobs.pipeline import Sampling
from worker.engine.batching.host_copies import to_device

#: Lower temperatures are greedy: logits divided by them overflow.
MIN_TEMPERATURE = 1e-3
#: Maximum number of candidates beyond top-k. In 16 bits many logits are equal: those equal to the k-th
#: are candidates too, in the order of their ids.
MAX_TIES = 32
#: Weight of the most likely token in top-p. Integer sums are the same in any order.
_MAX_WEIGHT = 2.0**40
#: Steps of splitmix64 (Steele, Lea and Flood, OOPSLA 2014), as int64.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_MIX = ((30, 0xBF58476D1CE4E5B9 - 2**64), (27, 0x94D049BB133111EB - 2**64))


@dataclass(frozen=True)
class SamplingMetadata:
    """Sampling parameters of the rows of a batch: tensors (rows,)."""

    #: float; 0 is greedy.
    temperature: Tensor
    #: int64; the vocabulary size where top-k is off.
    top_k: Tensor
    #: float64.
    top_p: Tensor
    #: int64: hashes of seed and position, see `noise_seeds`.
    noise_seed: Tensor
    #: Largest top_k of the sampled rows.
    max_top_k: int
    any_greedy: bool
    any_random: bool
    any_top_p: bool

    @classmethod
    def build(
        cls,
        samplings: Sequence[Sampling],
        positions: Sequence[int],
        vocab_size: int,
        device: torch.device,
    ) -> SamplingMetadata:
        """Collect the parameters of a batch.

        Args:
            samplings: one for each row.
            positions: number of output tokens before the sampled one, for each row.
            vocab_size: number of token ids.
            device: where the logits are.
        """
        temperatures = [
            s.temperature if s.temperature >= MIN_TEMPERATURE else 0.0 for s in samplings
        ]
        top_k = [min(s.top_k or vocab_size, vocab_size) for s in samplings]
        random_top_k = [k for k, t in zip(top_k, temperatures, strict=True) if t]
        top_p = torch.tensor([s.top_p for s in samplings], dtype=torch.float64)
        seeds = noise_seeds(torch.tensor([s.seed for s in samplings]), torch.tensor(positions))
        return cls(
            temperature=to_device(torch.tensor(temperatures), device),
            top_k=to_device(torch.tensor(top_k), device),
            top_p=to_device(top_p, device),
            noise_seed=to_device(seeds, device),
            max_top_k=max(random_top_k, default=1),
            any_greedy=len(random_top_k) < len(top_k),
            any_random=bool(random_top_k),
            any_top_p=any(s.top_p < 1 and s.temperature for s in samplings),
        )


def noise_seeds(seeds: Tensor, positions: Tensor) -> Tensor:
    """Hash seeds with positions: (rows,) int64 each, and so is the result."""
    return _mix(_mix(seeds) + positions)


def sample(
    logits: Tensor, metadata: SamplingMetadata, *, capturable: bool = False
) -> tuple[Tensor, Tensor]:
    """Sample a token for each row: temperature, then top-k, then top-p, as transformers does.

    A row's candidates are a function of its own logits and parameters: the k most likely tokens, and up
    to `MAX_TIES` more whose logits equal the k-th, those with the lowest ids first. In top-p, tokens of
    equal logits are all in or all out. Greedy takes the first of the most likely tokens.

    Args:
        logits: (rows, vocabulary), any float dtype.
        metadata: sampling parameters of the rows.
        capturable: whether a CUDA graph may capture it, so that the host must not read a value.

    Returns:
        token ids, (rows,) int64, and whether the row's logits were finite, (rows,) bool.
    """
    # The maximum is NaN if any logit is, and infinite if one is.
    is_finite = logits.amax(dim=-1).isfinite()
    if not metadata.any_random:
        return logits.argmax(dim=-1), is_finite
    scores, token_ids, excluded = _candidates(logits, metadata, capturable)
    greedy = metadata.temperature == 0
    scores = scores / torch.where(greedy, 1.0, metadata.temperature)[:, None]
    if metadata.any_top_p:
        weights = (scores - scores[:, :1]).double().exp() * _MAX_WEIGHT
        weights = weights.masked_fill(excluded, 0).nan_to_num(0, 0, 0).long()
        cumulative = weights.cumsum(-1)
        # A token is excluded if those with higher scores reach top-p already. With a top-p of 1 none is, not even one
        # without weight: only other rows of the batch need this.
        above = (cumulative - weights).gather(1, _first_equal(scores))
        reached = above >= metadata.top_p[:, None] * cumulative[:, -1:]
        reached[:, 0] = False  # the most likely token stays
        excluded = excluded | (reached & (metadata.top_p < 1)[:, None])
    noisy = scores.double() + _gumbel(metadata.noise_seed, token_ids)
    noisy = noisy.masked_fill(excluded, -torch.inf)
    sampled = token_ids.gather(1, noisy.argmax(-1)[:, None])[:, 0]
    if metadata.any_greedy:
        sampled = torch.where(greedy, logits.argmax(dim=-1), sampled)
    return sampled, is_finite


def _candidates(
    logits: Tensor, metadata: SamplingMetadata, capturable: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Find each row's most likely tokens, enough for the row with the largest top-k.

    Returns:
        logits in descending order, float32; token ids; and whether top-k excludes them: each
        (rows, candidates). Which tokens are left does not depend on the number of candidates.
    """
    vocab_size = logits.shape[-1]
    width = min(metadata.max_top_k + MAX_TIES, vocab_size)
    max_candidates = (metadata.top_k + MAX_TIES).clamp(max=vocab_size)[:, None]
    kth = (metadata.top_k - 1).clamp(max=width - 1)[:, None]
    if logits.device.type == "cpu" and not capturable:
        scores, token_ids = logits.topk(width, dim=-1)
        # topk picks any of several equal logits. It matters only where they exceed the ties.
        ambiguous = scores.gather(1, max_candidates.clamp(max=width - 1)) >= scores.gather(1, kth)
        ambiguous &= (max_candidates < vocab_size) & (metadata.temperature > 0)[:, None]
        if ambiguous.any():
            rows = ambiguous[:, 0].nonzero()[:, 0]
            scores[rows], token_ids[rows] = stable_topk(logits[rows], width)
    else:  # checking whether it matters would make the host wait for the device
        scores, token_ids = stable_topk(logits, width)
    excluded = scores < scores.gather(1, kth)
    excluded |= torch.arange(width, device=logits.device) >= max_candidates
    return scores.float(), token_ids, excluded


def stable_topk(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the ``k`` largest of (rows, vocabulary) and their indices, ties in the order of the indices.

    No two tokens have the same sort key: the logit's bits, made monotonic, above the id's.
    """
    ids = torch.arange(logits.shape[-1], device=logits.device)
    short = sort_key_dtype(logits) is torch.int32
    # In place: with 128,000 tokens, a copy for 256 rows takes 130 to 260 MB.
    values = torch.empty_like(logits, dtype=logits.dtype if short else torch.float32)
    values.copy_(logits).add_(0.0)  # turns -0.0 into 0.0, which it equals
    bits = values.view(torch.int16 if short else torch.int32)
    signs = bits >> (15 if short else 31)
    bits ^= signs.bitwise_and_(torch.iinfo(bits.dtype).max)
    del signs
    keys = bits.int() if short else bits.long()
    del values, bits
    keys <<= 16 if short else 32
    keys += (0xFFFF - ids).int() if short else -ids
    indices = keys.topk(k, dim=-1).indices
    return logits.gather(1, indices), indices


def sort_key_dtype(logits: Tensor) -> torch.dtype:
    """Return the dtype of the sort keys of (rows, vocabulary): int32 takes half the time of int64."""
    short = logits.dtype.itemsize == 2 and logits.shape[-1] <= 2**16
    return torch.int32 if short else torch.int64


def _first_equal(scores: Tensor) -> Tensor:
    """Return for each of (rows, candidates) in descending order the index of the first equal score."""
    index = torch.arange(scores.shape[-1], device=scores.device).expand_as(scores)
    equals_previous = torch.zeros_like(scores, dtype=torch.bool)
    equals_previous[:, 1:] = scores[:, 1:] == scores[:, :-1]
    return index.masked_fill(equals_previous, 0).cummax(-1).values


def _gumbel(noise_seed: Tensor, token_ids: Tensor) -> Tensor:
    """Return standard Gumbel noise for (rows,) seeds and (rows, candidates) token ids: float64."""
    bits = _mix(noise_seed[:, None] + token_ids) >> 11 & 2**53 - 1
    uniform = (bits.double() + 0.5) * 2.0**-53
    return -(-uniform.log()).log()


def _mix(x: Tensor) -> Tensor:
    """Hash int64 numbers with splitmix64."""
    x = (x + 1) * _GAMMA
    for shift, factor in _MIX:
        x = (x ^ (x >> shift & 2 ** (64 - shift) - 1)) * factor
    return x ^ (x >> 31 & 2**33 - 1)
