"""Approximate a matrix by one of low rank, with a proven bound of the error.

Throughout, D is the matrix, m x n with m <= n (a taller one is transposed), ``|.|`` the
Frobenius norm, and s_1 >= s_2 >= ... the singular values. Eckart and Young (1936): no matrix of
rank r is closer to D than sqrt(|D|² - s_1² - ... - s_r²).

`exact` takes the eigenvectors U of D Dᵀ, in float64. Squaring D squares its condition, which in
float32 would lose all singular values below 2**-12 of the largest; in float64 they are lost
below 2**-26, and D itself, a difference taken in float32, is not known to more than 2**-24.
So nothing of D is lost, and the m x m problem is several times cheaper than a singular
value decomposition of D. The approximation U_r U_rᵀ D is D's orthogonal projection, hence optimal
to second order in whatever error U_r has.

`randomized` looks for the same subspace in a block Krylov space (`worker.lora.krylov`), which knows the
energy |X|² of the approximation X that it finds, and bounds that of the best one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from worker.lora.krylov import ROUNDING, KrylovSpace

#: Maximum relative excess of an approximation's error over the best.
TOLERANCE = 1e-3
#: Columns of the sketch beyond the rank.
OVERSAMPLING = 16
#: With this many blocks, a sketch is abandoned for `exact`.
MAX_BLOCKS = 12
#: Up to this many rows or columns, `exact` takes milliseconds.
MAX_EXACT_SIZE = 256
#: Assumed rank of the sketch if the target has no rank.
INITIAL_RANK = 64


@dataclass(frozen=True)
class Target:
    """The rank to reach: a number, or the smallest that keeps a share of |D|², or both."""

    #: The rank; with ``energy``, the maximum rank. At least 1.
    rank: int | None = None
    #: The share of |D|² to keep, above 0 and at most 1.
    energy: float | None = None

    def max_rank(self, shape: tuple[int, int]) -> int:
        """Return the maximum rank for a matrix of this shape."""
        return min(*shape, self.rank) if self.rank else min(shape)


@dataclass(frozen=True)
class Approximation:
    """D ≈ B A, both float32, each with the factor √S."""

    #: m x r.
    b: Tensor
    #: r x n.
    a: Tensor
    #: |D|.
    norm: float
    #: A lower bound of the error |D - X| of any X of this rank; the minimum itself if ``exact``.
    min_error: float
    #: Whether `exact` computed it.
    exact: bool

    @property
    def rank(self) -> int:
        return self.a.shape[0]


def approximate(
    d: Tensor, target: Target, *, seed: int = 0, exact_only: bool = False
) -> Approximation:
    """Approximate D, with a sketch where it is faster and provably accurate.

    Args:
        d: m x n, float32, finite, on any device, in any orientation.
        target: the rank to reach.
        seed: seed of the sketch. The same seed gives the same result on the same machine.
        exact_only: never sketch.

    Returns:
        an approximation whose error is within `TOLERANCE` of the best, with a probability of failure of
        `worker.lora.krylov.FAILURE_PROBABILITY`.
    """
    if not d.any():
        rank = 1 if target.energy is not None else target.max_rank((d.shape[0], d.shape[1]))
        b, a = d.new_zeros(d.shape[0], rank), d.new_zeros(rank, d.shape[1])
        return Approximation(b=b, a=a, norm=0.0, min_error=0.0, exact=True)
    if not exact_only and min(d.shape) > MAX_EXACT_SIZE:
        approximation = randomized(d, target, seed=seed)
        if approximation is not None:
            return approximation
    return exact(d, target)


def exact(d: Tensor, target: Target) -> Approximation:
    """Approximate D optimally. Arguments are those of `approximate`."""
    if d.shape[0] > d.shape[1]:
        return _transpose(exact(d.T, target))
    gram = torch.zeros(d.shape[0], d.shape[0], dtype=torch.float64, device=d.device)
    for at in range(0, d.shape[1], 2048):  # in parts, since float64 takes twice the memory
        wide = d[:, at : at + 2048].double()
        gram.addmm_(wide, wide.T)
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    total = float(values.sum())
    rank = target.max_rank((d.shape[0], d.shape[1]))
    if target.energy is not None:
        rank = min(rank, _rank_for(values, target.energy * total))
    min_error = math.sqrt(float(values[rank:].sum()))
    u = vectors[:, :rank].float()
    return _balance(u, u.T @ d, norm=math.sqrt(total), min_error=min_error, exact=True)


def randomized(d: Tensor, target: Target, *, seed: int = 0) -> Approximation | None:
    """Approximate D from a sketch. Arguments are those of `approximate`.

    Returns:
        None if the sketch would have to grow too large to prove its accuracy.
    """
    if d.shape[0] > d.shape[1]:
        approximation = randomized(d.T, target, seed=seed)
        return None if approximation is None else _transpose(approximation)
    max_rank = target.max_rank((d.shape[0], d.shape[1]))
    sketched_rank = max_rank if target.energy is None else min(max_rank, INITIAL_RANK)
    width = sketched_rank + OVERSAMPLING
    energy = _energy(d)
    sketch = KrylovSpace(d, width, torch.Generator().manual_seed(seed))
    while sketch.blocks < MAX_BLOCKS and (sketch.blocks + 1) * width <= d.shape[0] // 2:
        sketch.expand()
        rank = max_rank
        if target.energy is not None:
            rank = min(rank, _rank_for(sketch.values, target.energy * energy))
            if rank > sketch.values.numel() - OVERSAMPLING:
                continue
        is_accurate = partial(_is_accurate, sketch, target, rank, energy)
        # The bound costs as much as several blocks, so first check whether it can suffice.
        if not is_accurate(float(sketch.values[-1])):
            continue
        missed = sketch.max_missed(is_accurate)
        if missed is not None and is_accurate(missed):
            basis = sketch.basis(rank)
            return _balance(
                basis,
                basis.T @ d,
                norm=math.sqrt(energy),
                min_error=math.sqrt(max(_min_error(sketch, rank, energy, missed), 0.0)),
                exact=False,
            )
    return None


def _is_accurate(
    sketch: KrylovSpace, target: Target, rank: int, energy: float, missed: float
) -> bool:
    """Return whether a sketch is proven accurate for a rank.

    Args:
        energy: |D|².
        missed: what the sketch missed at most (`KrylovSpace.max_missed`).
    """
    if target.energy is not None and rank > 1:
        smaller = sketch.max_energy(rank - 1, missed, energy) + ROUNDING * energy
        if smaller >= target.energy * energy:
            return False  # a smaller rank may suffice
    error = max(energy - float(sketch.values[:rank].sum()), 0.0)
    min_error = _min_error(sketch, rank, energy, missed)
    return error <= max((1 + TOLERANCE) ** 2 * min_error, 4 * ROUNDING * energy)


def _min_error(sketch: KrylovSpace, rank: int, energy: float, missed: float) -> float:
    """Return a lower bound of the squared error of any approximation; arguments as for `_is_accurate`."""
    return energy - sketch.max_energy(rank, missed, energy) - ROUNDING * energy


def error(d: Tensor, b: Tensor, a: Tensor) -> float:
    """Return |D - B A|. B and A may have been rounded to any dtype."""
    b, a = b.to(d), a.to(d)
    parts = (slice(at, at + 1024) for at in range(0, d.shape[0], 1024))
    return math.sqrt(math.fsum(_energy(torch.addmm(d[i], b[i], a, alpha=-1)) for i in parts))


def norm_of_product(b: Tensor, a: Tensor) -> float:
    """Return |B A| for B m x r and A r x n, without computing the m x n product.

    |B A|² = trace(Aᵀ Bᵀ B A) = the sum of the entries of (Bᵀ B) * (A Aᵀ), both r x r.
    """
    b, a = b.double(), a.double()
    return math.sqrt(max(float(((b.T @ b) * (a @ a.T)).sum()), 0.0))


def _rank_for(values: Tensor, energy: float) -> int:
    """Return how many values reach a sum; one more than there are if they do not reach it."""
    return int((values.cumsum(0) < energy).sum()) + 1


def _energy(x: Tensor) -> float:
    """Return |x|², summed in float64."""
    rows = range(0, x.shape[0], 1024)
    return math.fsum(float(x[at : at + 1024].double().square().sum()) for at in rows)


def _balance(
    u: Tensor, projected: Tensor, *, norm: float, min_error: float, exact: bool
) -> Approximation:
    """Split U (Uᵀ D) so that the columns of B and the rows of A have equal norms.

    Otherwise one factor would have the singular values, and over- or underflow in half precision.
    """
    root = torch.linalg.vector_norm(projected, dim=1).sqrt()
    # Rows that are zero stay zero.
    inverse = torch.where(root > 0, 1 / root, 0)
    return Approximation(
        b=u * root, a=projected * inverse[:, None], norm=norm, min_error=min_error, exact=exact
    )


def _transpose(x: Approximation) -> Approximation:
    return Approximation(b=x.a.T, a=x.b.T, norm=x.norm, min_error=x.min_error, exact=x.exact)
