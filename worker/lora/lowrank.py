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

`randomized` looks for the same subspace in a block Krylov space: Halko, Martinsson and Tropp,
"Finding structure with randomness", SIAM Review 53 (2011), algorithm 4.4, with all blocks kept
as Musco and Musco do (NeurIPS 2015, algorithm 2) and orthonormalized against each other. Let Q be
the orthonormal basis, m x l, and Z = Dᵀ Q. With H = Qᵀ D Dᵀ Q = Zᵀ Z = Y diag(θ) Yᵀ, the
projection on the first k columns of QY leaves exactly |D|² - θ_1 - ... - θ_k (Pythagoras), so
the energy that it captures is known. The energy of the best approximation is bounded by `_Krylov.max_energy`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Allowance for rounding in float32 products, as a share of |D|². All bounds include it.
ROUNDING = 2.0**-20
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
#: Steps of the Lanczos process that bounds what a sketch missed, and its probability of failure.
LANCZOS_STEPS = 64
FAILURE_PROBABILITY = 1e-9


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
        `FAILURE_PROBABILITY`.
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
    width = (
        max_rank + OVERSAMPLING
        if target.energy is None
        else min(max_rank, INITIAL_RANK) + OVERSAMPLING
    )
    energy = _energy(d)
    sketch = _Krylov(d, width, torch.Generator().manual_seed(seed))
    while sketch.blocks < MAX_BLOCKS and (sketch.blocks + 1) * width <= d.shape[0] // 2:
        sketch.expand()
        rank = max_rank
        if target.energy is not None:
            rank = min(rank, _rank_for(sketch.values, target.energy * energy))
            if rank > sketch.values.numel() - OVERSAMPLING:
                continue

        def is_accurate(missed: float, rank: int = rank) -> bool:
            """Return whether the sketch is proven accurate if it missed at most this much."""
            if target.energy is not None and rank > 1:
                smaller = sketch.max_energy(rank - 1, missed, energy) + ROUNDING * energy
                if smaller >= target.energy * energy:
                    return False  # a smaller rank may suffice
            error = max(energy - float(sketch.values[:rank].sum()), 0.0)
            min_error = energy - sketch.max_energy(rank, missed, energy) - ROUNDING * energy
            return error <= max((1 + TOLERANCE) ** 2 * min_error, 4 * ROUNDING * energy)

        # The bound costs as much as several blocks, so first check whether it can suffice.
        if not is_accurate(float(sketch.values[-1])):
            continue
        missed = sketch.max_missed(is_accurate)
        if missed is not None and is_accurate(missed):
            min_error = energy - sketch.max_energy(rank, missed, energy) - ROUNDING * energy
            basis = sketch.basis(rank)
            return _balance(
                basis,
                basis.T @ d,
                norm=math.sqrt(energy),
                min_error=math.sqrt(max(min_error, 0.0)),
                exact=False,
            )
    return None


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


class _Krylov:
    """A growing orthonormal basis Q of the block Krylov space of D Dᵀ from D Ω, Ω Gaussian."""

    def __init__(self, d: Tensor, width: int, generator: torch.Generator) -> None:
        m, n = d.shape
        self._d = d
        self._generator = generator
        # Drawn on the CPU, for the same numbers on every device.
        omega = torch.randn(n, width, generator=generator).to(d.device)
        #: (I - Q Qᵀ) D Dᵀ applied to the newest block: what the space does not contain yet.
        self._residual = (d @ omega).double()
        self._q = self._residual.new_zeros(m, 0)
        self._z = d.new_zeros(n, 0)
        self._h = self._residual.new_zeros(0, 0)
        self._y = self._h
        self._width = width
        self.blocks = 0
        #: θ, the eigenvalues of H in descending order: float64.
        self.values = self._residual.new_zeros(0)

    def expand(self) -> None:
        """Add a block to the basis."""
        block = torch.linalg.qr(self._residual).Q
        # The residual may consist of rounding errors, so orthogonalize once more.
        block = torch.linalg.qr(self._project_out(block)).Q
        self._q = torch.cat([self._q, block], dim=1)
        z = self._d.T @ block.float()
        self._z = torch.cat([self._z, z], dim=1)
        new = self._z.double().T @ z.double()
        self._h = torch.cat([torch.cat([self._h, new[: -self._width].T]), new], dim=1)
        values, vectors = torch.linalg.eigh(self._h)
        self.values, self._y = values.flip(0).clamp(min=0), vectors.flip(1)
        self._residual = self._project_out((self._d @ z).double())
        self.blocks += 1

    def basis(self, rank: int) -> Tensor:
        """Return the best basis of this rank within the space: m x rank, float32."""
        return (self._q @ self._y[:, :rank]).float()

    def max_energy(self, rank: int, missed: float, energy: float) -> float:
        """Return an upper bound of s_1² + ... + s_rank².

        In a basis that starts with the columns of Q Y, D Dᵀ is [[Θ, Rᵀ], [R, G]], where G is what
        `max_missed` bounds, and R = (I - Q Qᵀ) D Dᵀ Q Y is known: all blocks but the newest are mapped
        into the space, so only the newest one's rows of Y count. For every positive
        diagonal C,

            [[Θ, Rᵀ], [R, G]]  <=  [[Θ + C, 0], [0, G + R C⁻¹ Rᵀ]]

        because the difference, [[C, -Rᵀ], [-R, R C⁻¹ Rᵀ]], is positive semidefinite (Schur
        complement). Then the sums of the largest eigenvalues are ordered as well (Ky Fan). The
        largest eigenvalue of the lower block is at most g = |G|₂ + |R C⁻¹ᐟ²|₂², so a sum
        of ``rank`` eigenvalues is at most that of max(θ_i + c_i, g). C is free: columns after the
        first ``rank`` may be raised to θ_rank without loss, and the rest in proportion to the
        columns of R; the factor is searched. Convergence enters squared, as in the theorems on
        Ritz values, and no gap in the spectrum is required for the bound to hold.

        A second bound needs no R: a positive semidefinite block matrix is the sum of two matrices with the
        eigenvalues of Θ and of G (Bourin and Lee, Bull. London Math. Soc. 44, 2012), so by Ky Fan its
        ``rank`` largest eigenvalues sum up to at most those of Θ and those of G: min(rank |G|₂, tr G).

        Args:
            rank: at most the width of the space.
            missed: an upper bound of |G|₂.
            energy: |D|².
        """
        rest = torch.linalg.qr(self._residual, mode="r").R @ self._y[-self._width :]
        columns = torch.linalg.vector_norm(rest, dim=0)
        captured = float(self.values[:rank].sum())
        bound = captured + min(rank * missed, max(energy - float(self.values.sum()), 0.0))
        free = (self.values[rank - 1] - self.values).clamp(min=0)
        tiny = float(self.values[0]) * 1e-12
        for factor in torch.logspace(-6, 1, 29).tolist():
            c = free + factor * columns + tiny
            g = missed + float(torch.linalg.eigvalsh((rest / c) @ rest.T)[-1])
            top = (self.values + c).sort(descending=True).values[:rank]
            bound = min(bound, float(top.clamp(min=g).sum()))
        return bound

    def max_missed(self, is_useful: Callable[[float], bool]) -> float | None:
        """Return an upper bound of |G|₂, G being D Dᵀ outside of the space.

        By the Lanczos process from a random start. Kuczyński and Woźniakowski, SIAM J. Matrix
        Anal. Appl. 13 (1992), theorem 4.2: after k steps on an m x m matrix, the chance that the
        largest Ritz value ξ is below (1 - ε) times the largest eigenvalue is at most
        1.648 √m exp(-(2k - 1) √ε). It makes no assumption about the matrix. ε is chosen
        for the chance to be `FAILURE_PROBABILITY`.

        Args:
            is_useful: whether a bound would be useful. It is called after some steps with ξ, which is a lower
                limit of any bound. If it returns False, the result is None.
        """
        d, m = self._d, self._d.shape[0]
        root = math.log(1.648 * math.sqrt(m) / FAILURE_PROBABILITY) / (2 * LANCZOS_STEPS - 1)
        start = torch.randn(m, 1, generator=self._generator, dtype=torch.float64).to(d.device)
        v = self._project_out(start)
        basis = v / v.norm()
        images = basis[:, :0]
        while True:
            image = self._project_out((d @ (d.T @ basis[:, -1:].float())).double())
            images = torch.cat([images, image], dim=1)
            steps = images.shape[1]
            rest = image
            for _ in range(2):
                rest = rest - basis @ (basis.T @ rest)
            # A residual of zero means that the process has covered the whole space.
            last = steps == LANCZOS_STEPS or float(rest.norm()) <= ROUNDING * float(self.values[0])
            if last or steps == LANCZOS_STEPS // 6:
                ritz_value = max(float(torch.linalg.eigvalsh(basis.T @ images)[-1]), 0.0)
                if last:
                    return ritz_value / (1 - root**2)
                if not is_useful(ritz_value):
                    return None
            basis = torch.cat([basis, rest / rest.norm()], dim=1)

    def _project_out(self, x: Tensor) -> Tensor:
        """Project onto the complement of the space, twice because of rounding."""
        for _ in range(2):
            x = x - self._q @ (self._q.T @ x)
        return x


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
