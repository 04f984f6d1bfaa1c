"""Sampling: the distribution is transformers', and the noise of a row depends on nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from scipy.stats import chisquare, kstest
from torch import Tensor
from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from jobs.pipeline import Sampling
from worker.engine.batching import sampler
from worker.engine.batching.sampler import (
    MAX_TIES,
    SamplingMetadata,
    _gumbel,
    _mix,
    noise_seeds,
    sample,
    stable_topk,
)
from worker.engine.cuda import torch_ops

VOCABULARY = 40
CPU = torch.device("cpu")
LOGITS = torch.randn(VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2


def distribution(sampling: Sampling) -> Tensor:
    """Return the probabilities that `generate` draws from."""
    ids: Any = torch.zeros(1, 1, dtype=torch.int64)
    scores: Any = TemperatureLogitsWarper(sampling.temperature)(ids, LOGITS[None])
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(ids, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(ids, scores)
    probabilities: Tensor = scores.softmax(-1)[0]
    return probabilities


def draw(samplings: list[Sampling], positions: list[int] | None = None) -> Tensor:
    rows = SamplingMetadata.build(samplings, positions or [0] * len(samplings), VOCABULARY, CPU)
    tokens, sound = sample(LOGITS.expand(len(samplings), -1), rows)
    assert sound.all()
    return tokens


def fit(tokens: Tensor, sampling: Sampling) -> float:
    """Return the p-value of sampled tokens under the probabilities of `generate`."""
    counts = torch.bincount(tokens, minlength=VOCABULARY).double()
    probabilities = distribution(sampling).double()
    probabilities *= len(tokens) / probabilities.sum()
    assert not counts[probabilities == 0].any()
    # The chi-square test needs rare tokens to be counted together.
    rare = probabilities < 5
    observed = torch.cat([counts[~rare], counts[rare].sum()[None]])
    expected = torch.cat([probabilities[~rare], probabilities[rare].sum()[None]])
    possible = expected > 0
    return float(chisquare(observed[possible].numpy(), expected[possible].numpy()).pvalue)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.75, top_k=50),
        Sampling(temperature=0.75, top_k=5),
        Sampling(temperature=1.3, top_k=0, top_p=0.8),
        Sampling(temperature=1.0, top_k=10, top_p=0.6),
    ],
)
def test_the_distribution_is_that_of_generate(sampling: Sampling) -> None:
    rows = [replace(sampling, seed=seed) for seed in range(20_000)]
    assert fit(draw(rows), sampling) > 1e-3


def test_samples_at_different_positions_are_independent() -> None:
    sampling = Sampling(top_k=0, seed=5)
    assert fit(draw([sampling] * 20_000, list(range(20_000))), sampling) > 1e-3


def test_a_row_samples_the_same_in_any_batch() -> None:
    mixed = [
        Sampling(temperature=(0.5, 0.75, 1.2)[i % 3], top_k=(0, 3, 50)[i % 3], seed=i // 2)
        for i in range(64)
    ] + [Sampling(temperature=0), Sampling(temperature=0.9, top_p=0.7, seed=3)]
    together = draw(mixed, list(range(len(mixed))))
    for i, sampling in enumerate(mixed):
        assert draw([sampling], [i]) == together[i]


def test_top_p_of_a_row_excludes_no_token_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even one so unlikely that it has no weight in top-p. It is hardly ever sampled, so the noise is a fake."""

    def favours_token_3(_seeds: Tensor, token_ids: Tensor) -> Tensor:
        return torch.where(token_ids == 3, 100.0, 0.0).double()

    monkeypatch.setattr(sampler, "_gumbel", favours_token_3)
    logits = torch.zeros(2, 10)
    logits[:, 0] = 60.0
    whole, nucleus = Sampling(temperature=1.0), Sampling(temperature=1.0, top_p=0.9)
    tokens, _ = sample(logits, SamplingMetadata.build([whole, nucleus], [0, 0], 10, CPU))
    assert tokens.tolist() == [3, 0]


def test_parameters_are_copied_to_a_device_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of memory that is not pinned would wait for the step in flight. The device is a fake."""
    copies: list[tuple[bool, bool]] = []
    pinned: set[int] = set()

    def pin_memory(tensor: Tensor) -> Tensor:
        pinned.add(id(tensor))
        return tensor

    def to(tensor: Tensor, device: torch.device, *, non_blocking: bool = False) -> Tensor:
        assert device.type == "cuda"
        copies.append((id(tensor) in pinned, non_blocking))
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin_memory)
    monkeypatch.setattr(Tensor, "to", to)
    SamplingMetadata.build([Sampling()] * 3, [0] * 3, VOCABULARY, torch.device("cuda"))
    assert copies == [(True, True)] * 4


def test_temperature_zero_takes_the_most_likely_token() -> None:
    assert (
        draw([Sampling(temperature=0, seed=s) for s in range(5)]).tolist()
        == [int(LOGITS.argmax())] * 5
    )


def test_logits_that_are_not_finite_are_reported() -> None:
    logits = LOGITS.repeat(3, 1)
    logits[0, 3] = torch.nan
    logits[2, 3] = torch.inf
    rows = SamplingMetadata.build([Sampling()] * 3, [0] * 3, VOCABULARY, CPU)
    assert sample(logits, rows)[1].tolist() == [False, True, False]


def test_the_noise_is_standard_gumbel() -> None:
    seeds = torch.arange(300)
    noise = _gumbel(_mix(seeds), torch.arange(100).expand(300, -1))
    assert kstest(noise.flatten().numpy(), "gumbel_r").pvalue > 1e-3
    assert len(set(noise.flatten().tolist())) == noise.numel()


def splitmix64(number: int) -> int:
    """Return the output of splitmix64 with the seed 0 after ``number`` others, as its authors write it."""
    mask = 2**64 - 1
    z = (number + 1) * 0x9E3779B97F4A7C15 & mask
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
    return z ^ z >> 31


def test_a_seed_gives_the_same_text_in_every_version() -> None:
    """The noise is the published hash of seed, position and token, so that old jobs can be replayed."""
    assert splitmix64(0) == 0xE220A8397B1DCDAF, "the first output that others list"
    seeds, positions = [0, 7, 2**63 - 1], [0, 300, 5]
    hashes = [splitmix64(splitmix64(s) + p) for s, p in zip(seeds, positions, strict=True)]
    found = noise_seeds(torch.tensor(seeds), torch.tensor(positions))
    assert [seed % 2**64 for seed in found.tolist()] == hashes
    uniform = [
        [((splitmix64(one + token) >> 11) + 0.5) / 2**53 for token in range(VOCABULARY)]
        for one in hashes
    ]
    noise = -(-torch.tensor(uniform, dtype=torch.float64).log()).log()
    assert torch.equal(_gumbel(found, torch.arange(VOCABULARY).expand(3, -1)), noise)
    expected = (LOGITS.double() + noise).argmax(-1)
    drawn = draw([Sampling(temperature=1, top_k=0, seed=s) for s in seeds], positions)
    assert drawn.tolist() == expected.tolist()


@pytest.mark.parametrize("width", [torch.bfloat16, torch.float16])
def test_ties_are_sampled_the_same_in_any_batch(width: torch.dtype) -> None:
    """In 16 bits, many scores are equal. Their order must not matter."""
    generator = torch.Generator().manual_seed(1)
    neighbors = [Sampling(top_k=60, seed=1), Sampling(top_k=0, seed=2)]
    for seed in range(100):
        logits = (torch.randn(1, 768, generator=generator) * 2).to(width)
        for sampling in (
            Sampling(temperature=0),
            Sampling(temperature=1, top_k=20, seed=seed),
            Sampling(temperature=1, top_k=20, top_p=0.5, seed=seed),
        ):
            single, _ = sample(logits, SamplingMetadata.build([sampling], [0], 768, CPU))
            crowd = [sampling, *neighbors]
            together, _ = sample(
                logits.repeat(3, 1), SamplingMetadata.build(crowd, [0] * 3, 768, CPU)
            )
            assert single[0] == together[0]
            if not sampling.temperature:
                assert single[0] == logits.argmax()


def test_all_tokens_tied_with_the_k_th_are_candidates() -> None:
    """As transformers' top-k keeps them."""
    logits = torch.zeros(1, 40, dtype=torch.bfloat16)
    logits[0, 7] = 1
    rows = SamplingMetadata.build(
        [Sampling(temperature=1, top_k=2, seed=s) for s in range(2000)], [0] * 2000, 40, CPU
    )
    tokens, _ = sample(logits.expand(2000, -1), rows)
    assert len(set(tokens.tolist())) > 30


def crowd() -> list[Sampling]:
    """Rows in the same batch that need more candidates, up to all tokens."""
    return [Sampling(top_k=k, top_p=p, seed=k) for k in (1, 90, 0) for p in (1.0, 0.6)]


@pytest.mark.parametrize("width", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("levels", [2, 9])
def test_samples_from_ties_do_not_depend_on_the_batch(width: torch.dtype, levels: int) -> None:
    """With more ties than the margin holds."""
    vocabulary = 400
    generator = torch.Generator().manual_seed(2)
    for seed in range(8):
        logits = torch.randint(levels, (1, vocabulary), generator=generator).to(width) / 4
        for sampling in (
            Sampling(temperature=0, seed=seed),
            Sampling(temperature=1, top_k=1, seed=seed),
            Sampling(temperature=1, top_k=20, seed=seed),
            Sampling(temperature=0.7, top_k=20, top_p=0.5, seed=seed),
            Sampling(temperature=0.7, top_k=0, top_p=0.9, seed=seed),
        ):
            single, _ = sample(logits, SamplingMetadata.build([sampling], [0], vocabulary, CPU))
            for neighbor in crowd():
                rows = SamplingMetadata.build([neighbor, sampling], [0, 0], vocabulary, CPU)
                assert sample(logits.repeat(2, 1), rows)[0][1] == single[0]


def test_ties_beyond_the_margin_are_broken_by_token_id() -> None:
    logits = torch.zeros(1, 300)
    logits[0, 200:] = 1
    samplings = [Sampling(temperature=1, top_k=2, seed=s) for s in range(2000)]
    rows = SamplingMetadata.build(samplings, [0] * 2000, 300, CPU)
    tokens, _ = sample(logits.expand(2000, -1), rows)
    assert set(tokens.tolist()) == set(range(200, 202 + MAX_TIES))


def test_tokens_are_sorted_by_score_then_by_id() -> None:
    """The sort that avoids synchronizing with the device, against a full sort."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randint(-9, 9, (6, 200), generator=generator) / 4
    logits[0, :50] = -0.0
    logits[1, ::3] = -torch.inf
    expected = logits.sort(dim=-1, descending=True, stable=True)
    for width in (1, 40, 200):
        scores, tokens = stable_topk(logits, width)
        assert torch.equal(tokens, expected.indices[:, :width])
        assert torch.equal(scores, expected.values[:, :width])


@pytest.mark.parametrize("width", [torch.bfloat16, torch.float16])
def test_16_bit_scores_are_sorted_like_32_bit_scores(width: torch.dtype) -> None:
    """All 16-bit scores, with ties, both zeros and infinities, with 16-bit and 32-bit keys."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16)
    every = bits.view(width)
    every = every[~every.isnan()]
    generator = torch.Generator().manual_seed(4)
    shuffled = every[torch.randperm(len(every), generator=generator)]
    crowded = torch.randint(-9, 9, (len(every),), generator=generator).to(width) / 4
    crowded[::7] = -0.0
    crowded[5::99] = -torch.inf
    logits = torch.stack([shuffled, crowded])
    expected = logits.float().sort(dim=-1, descending=True, stable=True)
    for rows in (logits, logits.float()):
        scores, tokens = stable_topk(rows, 5000)
        assert torch.equal(tokens, expected.indices[:, :5000])
        assert torch.equal(scores.float(), expected.values[:, :5000])


def test_vocabularies_larger_than_16_bits_are_sorted() -> None:
    logits = torch.zeros(1, 2**16 + 300, dtype=torch.float16)
    logits[0, 2**16 :] = 1
    _, tokens = stable_topk(logits, 400)
    assert tokens[0].tolist() == [*range(2**16, 2**16 + 300), *range(100)]


@pytest.mark.parametrize("width", [torch.float32, torch.bfloat16, torch.float16])
def test_sampling_in_a_cuda_graph_gives_the_same_tokens(width: torch.dtype) -> None:
    """Rows without top-p. Some are greedy, some have ties, and some are not finite."""
    vocabulary, max_top_k = 300, 64
    generator = torch.Generator().manual_seed(5)
    logits = (torch.randn(200, vocabulary, generator=generator) * 2).to(width)
    logits[50:100] = torch.randint(5, (50, vocabulary), generator=generator).to(width)
    logits[7, 30], logits[8, 3] = torch.nan, torch.inf
    logits[9, 10:] = -torch.inf
    samplings = [
        Sampling(
            temperature=(0.0, 0.75, 1.3, 1e-4)[i % 4],
            top_k=(1, 5, 50, max_top_k)[i // 4 % 4],
            seed=i,
        )
        for i in range(200)
    ]
    positions = list(range(200))
    rows = SamplingMetadata.build(samplings, positions, vocabulary, CPU)
    tokens, sound = sample(logits, rows)
    recorded, numbers = torch_ops.sample(
        logits, rows.temperature, rows.top_k, rows.noise_seed, max_top_k
    )
    assert torch.equal(numbers, sound)
    assert sound.sum() == 198
    assert torch.equal(recorded[sound], tokens[sound])
