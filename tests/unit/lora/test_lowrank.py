"""Low-rank factors: as good as a singular value decomposition, with a proven bound."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worker.lora import lowrank
from worker.lora.krylov import KrylovSpace
from worker.lora.lowrank import Target

#: The relative rounding error of float32 sums of a few hundred terms.
SLACK = 1e-5


def matrix(m: int, n: int, seed: int, decay: float, noise: float) -> Tensor:
    """Return a random matrix whose singular values fall like i**-decay, over a floor of noise."""
    generator = torch.Generator().manual_seed(seed)
    k = min(m, n)
    u = torch.linalg.qr(torch.randn(m, k, generator=generator)).Q
    v = torch.linalg.qr(torch.randn(n, k, generator=generator)).Q
    values = torch.arange(1.0, k + 1) ** -decay
    rough = torch.randn(m, n, generator=generator) / math.sqrt(max(m, n))
    product: Tensor = (u * values) @ v.T + noise * rough
    return product


def tail(d: Tensor, rank: int) -> float:
    """Return the error of the best approximation: Eckart and Young."""
    return float(torch.linalg.svdvals(d.double())[rank:].square().sum().sqrt())


matrices = st.builds(
    matrix,
    m=st.integers(60, 200),
    n=st.integers(60, 200),
    seed=st.integers(0, 2**32 - 1),
    decay=st.floats(0, 3),
    noise=st.sampled_from([0.0, 0.01, 0.3]),
)
few_examples = settings(max_examples=25, deadline=None)


@few_examples
@given(matrices, st.integers(1, 60))
def test_exact_factors_are_optimal(d: Tensor, rank: int) -> None:
    factors = lowrank.exact(d, Target(rank=rank))
    norm = float(d.norm())
    assert factors.norm == pytest.approx(norm, rel=SLACK)
    assert (factors.b.shape, factors.a.shape) == ((d.shape[0], rank), (rank, d.shape[1]))
    error, best = lowrank.error(d, factors.b, factors.a), tail(d, rank)
    assert error == pytest.approx(best, abs=SLACK * norm)
    assert factors.min_error == pytest.approx(best, abs=SLACK * norm)


@few_examples
@given(matrices, st.integers(1, 20), st.integers(0, 3))
def test_the_error_bound_of_a_sketch_holds(d: Tensor, rank: int, seed: int) -> None:
    factors = lowrank.randomized(d, Target(rank=rank), seed=seed)
    best, norm = tail(d, rank), float(d.norm())
    if factors is None:
        return
    error = lowrank.error(d, factors.b, factors.a)
    # The bound is the root of a difference of squares, which has float32's rounding error.
    rounding = 1e-5 * norm**2
    assert factors.min_error**2 <= best**2 + rounding, "the bound may not exceed the optimal error"
    assert error >= best - SLACK * norm
    assert error <= best * (1 + lowrank.TOLERANCE) + 3e-3 * norm


def test_error_bounds_hold_and_tighten_with_every_block() -> None:
    d = matrix(200, 300, seed=1, decay=0.5, noise=0.1)
    squares = torch.linalg.svdvals(d.double()).square()
    sketch = KrylovSpace(d, 20, torch.Generator().manual_seed(0))
    bounds = []
    for _ in range(5):
        sketch.expand()
        missed = sketch.max_missed(lambda _: True)
        assert missed is not None
        q = sketch._q
        outside = d.double() - q @ (q.T @ d.double())
        assert missed >= float(torch.linalg.matrix_norm(outside, 2)) ** 2
        for rank in (1, 5, 10, 20):
            truth = float(squares[:rank].sum())
            assert float(sketch.values[:rank].sum()) <= truth * (1 + SLACK)
            assert sketch.max_energy(rank, missed, float(squares.sum())) >= truth * (1 - SLACK)
        bounds.append(sketch.max_energy(10, missed, float(squares.sum())))
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[-1] == pytest.approx(float(squares[:10].sum()), rel=1e-2)


@pytest.mark.parametrize("decay", [0.5, 1.0, 2.0])
def test_decaying_spectra_need_only_a_sketch(decay: float) -> None:
    d = matrix(300, 500, seed=2, decay=decay, noise=0)
    factors = lowrank.approximate(d, Target(rank=8))
    assert not factors.exact
    best = tail(d, 8)
    assert lowrank.error(d, factors.b, factors.a) <= best * (1 + lowrank.TOLERANCE)
    assert factors.min_error == pytest.approx(best, rel=3 * lowrank.TOLERANCE)


def test_flat_spectra_are_computed_exactly() -> None:
    """All singular values are equal, so no sketch converges."""
    d = torch.linalg.qr(torch.randn(300, 300, generator=torch.Generator().manual_seed(3))).Q
    assert lowrank.randomized(d, Target(energy=0.5)) is None
    factors = lowrank.approximate(d, Target(energy=0.5))
    assert factors.exact
    assert factors.rank in (150, 151)


@few_examples
@given(matrices, st.floats(0.05, 0.99))
def test_the_smallest_rank_with_the_energy_is_chosen(d: Tensor, share: float) -> None:
    squares = torch.linalg.svdvals(d.double()).square()
    shares = squares.cumsum(0) / squares.sum()
    for factors in (
        lowrank.exact(d, Target(energy=share)),
        lowrank.randomized(d, Target(energy=share)),
    ):
        if factors is not None:
            assert shares[factors.rank - 1] >= share - SLACK
            assert factors.rank == 1 or shares[factors.rank - 2] <= share + SLACK


def test_the_smaller_of_rank_and_energy_applies() -> None:
    d = matrix(300, 400, seed=4, decay=1, noise=0)
    free = lowrank.approximate(d, Target(energy=0.9)).rank
    assert free > 3
    assert lowrank.approximate(d, Target(energy=0.9, rank=3)).rank == 3
    assert lowrank.approximate(d, Target(energy=0.9, rank=100)).rank == free


@pytest.mark.parametrize("shape", [(300, 400), (400, 300)])
def test_the_same_seed_gives_the_same_factors(shape: tuple[int, int]) -> None:
    d = matrix(*shape, seed=5, decay=1, noise=0)
    first, second = (lowrank.approximate(d, Target(rank=8), seed=7) for _ in range(2))
    assert not first.exact
    assert torch.equal(first.b, second.b)
    assert torch.equal(first.a, second.a)
    reseeded = lowrank.approximate(d, Target(rank=8), seed=8)
    assert not torch.equal(first.b, reseeded.b)


@pytest.mark.parametrize("target", [Target(rank=5), Target(energy=0.9)])
def test_equal_models_give_zero_factors(target: Target) -> None:
    factors = lowrank.approximate(torch.zeros(300, 400), target)
    assert not factors.b.any()
    assert (factors.norm, factors.min_error) == (0, 0)
    assert factors.rank == (5 if target.rank else 1)


def test_a_difference_of_lower_rank_is_reproduced() -> None:
    generator = torch.Generator().manual_seed(6)
    d = torch.randn(400, 4, generator=generator) @ torch.randn(4, 300, generator=generator)
    for exact_only in (False, True):
        factors = lowrank.approximate(d, Target(rank=16), exact_only=exact_only)
        assert factors.exact == exact_only
        assert lowrank.error(d, factors.b, factors.a) <= SLACK * factors.norm
        assert factors.b.isfinite().all()
        assert factors.a.isfinite().all()


def test_factors_are_balanced_for_half_precision() -> None:
    """At 1e-7, the unbalanced factors U S and V would underflow in float16."""
    d = matrix(300, 400, seed=8, decay=1, noise=0) * 1e-7
    factors = lowrank.approximate(d, Target(rank=8))
    torch.testing.assert_close(factors.b.norm(dim=0), factors.a.norm(dim=1), rtol=1e-3, atol=0)
    b, a = factors.b.half(), factors.a.half()
    rounded, exact = lowrank.error(d, b, a), lowrank.error(d, factors.b, factors.a)
    assert rounded == pytest.approx(exact, rel=1e-2)


@few_examples
@given(matrices, st.integers(1, 20))
def test_the_norm_of_a_product_is_computed_from_its_factors(d: Tensor, rank: int) -> None:
    factors = lowrank.exact(d, Target(rank=rank))
    norm = float((factors.b.double() @ factors.a.double()).norm())
    assert lowrank.norm_of_product(factors.b, factors.a) == pytest.approx(norm, rel=1e-6)
