"""The best approximation of a matrix by one of low rank, with proof of how good it is.

Throughout, D is the matrix, m x n with m <= n (a taller one is transposed), ``|.|`` the
Frobenius norm, and s_1 >= s_2 >= ... the singular values. Eckart and Young (1936): no matrix of
rank r is nearer to D than sqrt(|D|² - s_1² - ... - s_r²).

`exact` takes the eigenvectors U of D Dᵀ, in float64. Squaring D squares its condition, which in
float32 would lose all singular values below 2**-12 of the largest; in float64 they are lost
below 2**-26, and D itself, a difference taken in float32, is not known to more than 2**-24.
So nothing that D tells is lost, and the m x m problem is several times cheaper than a singular
value decomposition of D. The approximation U_r U_rᵀ D is D's orthogonal projection, hence optimal
to second order in whatever error U_r has.

`randomised` looks for the same subspace in a block Krylov space: Halko, Martinsson and Tropp,
"Finding structure with randomness", SIAM Review 53 (2011), algorithm 4.4, with all blocks kept
as Musco and Musco do (NeurIPS 2015, algorithm 2) and orthonormalised against each other. Let Q be
the orthonormal basis, m x l, and Z = Dᵀ Q. With H = Qᵀ D Dᵀ Q = Zᵀ Z = Y diag(θ) Yᵀ, the
projection on the first k columns of QY leaves exactly |D|² - θ_1 - ... - θ_k (Pythagoras), so
what the approximation *has* is known. What it could have had is bounded by `_Krylov.most`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: Allowed for rounding in float32 products, as a share of |D|²: every bound gives it away.
ROUNDING = 2.0**-20
#: An approximation is good when its error is at most this much above the best, relatively.
TOLERANCE = 1e-3
#: Columns of the sketch beyond the rank.
OVERSAMPLING = 16
#: A sketch that has grown to so many blocks is given up for `exact`.
BLOCKS = 12
#: Below this many rows or columns `exact` takes milliseconds.
SMALL = 256
#: Width of the sketch when the rank is not known beforehand.
GUESS = 64
#: The Lanczos process that bounds what a sketch missed: its steps, and how often it may fail.
STEPS = 64
FAILURE = 1e-9


@dataclass(frozen=True)
class Target:
    """The rank to reach: a number, or the smallest that keeps a share of |D|², or both."""

    #: The rank; with ``energy``, the most it may be. At least 1.
    rank: int | None = None
    #: The share of |D|² to keep, above 0 and at most 1.
    energy: float | None = None

    def within(self, shape: tuple[int, int]) -> int:
        """Return the largest rank allowed for a matrix of this shape."""
        return min(*shape, self.rank) if self.rank else min(shape)


@dataclass(frozen=True)
class Approximation:
    """D ≈ B A, both float32, with √S on either side."""

    #: m x r.
    b: Tensor
    #: r x n.
    a: Tensor
    #: |D|.
    norm: float
    #: A lower bound of the error |D - X| of every X of this rank; its value if ``exact``.
    best: float
    #: Whether `exact` computed it.
    exact: bool

    @property
    def rank(self) -> int:
        return self.a.shape[0]


def approximate(
    d: Tensor, target: Target, *, seed: int = 0, exact_only: bool = False
) -> Approximation:
    """Approximate D, randomised where that is quicker and can be shown to be good.

    Args:
        d: m x n, float32, finite, on any device, in any orientation.
        target: the rank to reach.
        seed: of the sketch; the same seed gives the same result on the same machine.
        exact_only: never sketch.

    Returns:
        an approximation whose error is within `TOLERANCE` of the best, but for a chance of
        `FAILURE`.
    """
    if not d.any():
        rank = 1 if target.energy is not None else target.within((d.shape[0], d.shape[1]))
        b, a = d.new_zeros(d.shape[0], rank), d.new_zeros(rank, d.shape[1])
        return Approximation(b=b, a=a, norm=0.0, best=0.0, exact=True)
    if not exact_only and min(d.shape) > SMALL:
        found = randomised(d, target, seed=seed)
        if found is not None:
            return found
    return exact(d, target)


def exact(d: Tensor, target: Target) -> Approximation:
    """Approximate D optimally; arguments as for `approximate`."""
    if d.shape[0] > d.shape[1]:
        return _transposed(exact(d.T, target))
    gram = torch.zeros(d.shape[0], d.shape[0], dtype=torch.float64, device=d.device)
    for at in range(0, d.shape[1], 2048):  # not all of D at once: float64 takes twice its memory
        wide = d[:, at : at + 2048].double()
        gram.addmm_(wide, wide.T)
    values, vectors = torch.linalg.eigh(gram)
    values, vectors = values.flip(0).clamp(min=0), vectors.flip(1)
    total = float(values.sum())
    rank = target.within((d.shape[0], d.shape[1]))
    if target.energy is not None:
        rank = min(rank, _rank_for(values, target.energy * total))
    best = math.sqrt(float(values[rank:].sum()))
    u = vectors[:, :rank].float()
    return _balanced(u, u.T @ d, norm=math.sqrt(total), best=best, exact=True)


def randomised(d: Tensor, target: Target, *, seed: int = 0) -> Approximation | None:
    """Approximate D from a sketch; arguments as for `approximate`.

    Returns:
        None if the sketch would have to grow too large before it is shown to be good.
    """
    if d.shape[0] > d.shape[1]:
        turned = randomised(d.T, target, seed=seed)
        return None if turned is None else _transposed(turned)
    most = target.within((d.shape[0], d.shape[1]))
    width = most + OVERSAMPLING if target.energy is None else min(most, GUESS) + OVERSAMPLING
    energy = _energy(d)
    sketch = _Krylov(d, width, torch.Generator().manual_seed(seed))
    while sketch.blocks < BLOCKS and (sketch.blocks + 1) * width <= d.shape[0] // 2:
        sketch.expand()
        rank = most
        if target.energy is not None:
            rank = min(rank, _rank_for(sketch.values, target.energy * energy))
            if rank > sketch.values.numel() - OVERSAMPLING:
                continue

        def good(missed: float, rank: int = rank) -> bool:
            """Say whether the sketch is shown to be good if it missed no more than this."""
            if target.energy is not None and rank > 1:
                less = sketch.most(rank - 1, missed, energy) + ROUNDING * energy
                if less >= target.energy * energy:
                    return False  # a smaller rank might do
            error = max(energy - float(sketch.values[:rank].sum()), 0.0)
            least = energy - sketch.most(rank, missed, energy) - ROUNDING * energy
            return error <= max((1 + TOLERANCE) ** 2 * least, 4 * ROUNDING * energy)

        # Bounding what was missed costs as much as some blocks: not while there is no hope.
        if not good(float(sketch.values[-1])):
            continue
        missed = sketch.missed(good)
        if missed is not None and good(missed):
            least = energy - sketch.most(rank, missed, energy) - ROUNDING * energy
            basis = sketch.basis(rank)
            return _balanced(
                basis,
                basis.T @ d,
                norm=math.sqrt(energy),
                best=math.sqrt(max(least, 0.0)),
                exact=False,
            )
    return None


def error(d: Tensor, b: Tensor, a: Tensor) -> float:
    """Return |D - B A|, measured: B and A may have been rounded to any dtype."""
    b, a = b.to(d), a.to(d)
    parts = (slice(at, at + 1024) for at in range(0, d.shape[0], 1024))
    return math.sqrt(math.fsum(_energy(torch.addmm(d[i], b[i], a, alpha=-1)) for i in parts))


def norm_of_product(b: Tensor, a: Tensor) -> float:
    """Return |B A| for B m x r and A r x n, without making the m x n product.

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
        # Drawn on the CPU: the same numbers on every device.
        omega = torch.randn(n, width, generator=generator).to(d.device)
        #: (I - Q Qᵀ) D Dᵀ applied to the newest block: what the space does not hold yet.
        self._rest = (d @ omega).double()
        self._q = self._rest.new_zeros(m, 0)
        self._z = d.new_zeros(n, 0)
        self._h = self._rest.new_zeros(0, 0)
        self._y = self._h
        self._width = width
        self.blocks = 0
        #: θ, the eigenvalues of H in descending order: float64.
        self.values = self._rest.new_zeros(0)

    def expand(self) -> None:
        """Add a block to the basis; `most` and `basis` then speak of the larger one."""
        block = torch.linalg.qr(self._rest).Q
        # The norm of what is left may be all rounding, which points anywhere: once is not enough.
        block = torch.linalg.qr(self._outside(block)).Q
        self._q = torch.cat([self._q, block], dim=1)
        z = self._d.T @ block.float()
        self._z = torch.cat([self._z, z], dim=1)
        new = self._z.double().T @ z.double()
        self._h = torch.cat([torch.cat([self._h, new[: -self._width].T]), new], dim=1)
        values, vectors = torch.linalg.eigh(self._h)
        self.values, self._y = values.flip(0).clamp(min=0), vectors.flip(1)
        self._rest = self._outside((self._d @ z).double())
        self.blocks += 1

    def basis(self, rank: int) -> Tensor:
        """Return the best basis of this rank within the space: m x rank, float32."""
        return (self._q @ self._y[:, :rank]).float()

    def most(self, rank: int, missed: float, energy: float) -> float:
        """Return an upper bound of s_1² + ... + s_rank².

        In a basis that starts with the columns of Q Y, D Dᵀ is [[Θ, Rᵀ], [R, G]], where G is what
        `missed` bounds, and R = (I - Q Qᵀ) D Dᵀ Q Y is known: all blocks but the newest are mapped
        into the space, so only the newest one's rows of Y count. For every positive
        diagonal C,

            [[Θ, Rᵀ], [R, G]]  <=  [[Θ + C, 0], [0, G + R C⁻¹ Rᵀ]]

        because the difference, [[C, -Rᵀ], [-R, R C⁻¹ Rᵀ]], is positive semidefinite (Schur
        complement). Then the sums of the largest eigenvalues are ordered as well (Ky Fan). The
        largest eigenvalue of the lower block is at most g = |G|₂ + |R C⁻¹ᐟ²|₂², so a sum
        of ``rank`` eigenvalues is at most that of max(θ_i + c_i, g). C is free: columns after the
        first ``rank`` may be raised to θ_rank for nothing, and the rest in proportion to the
        columns of R; the factor is searched. Convergence enters squared, as in the theorems on
        Ritz values, and no gap in the spectrum is required for the bound to hold.

        Without R, Ky Fan's inequality alone gives D Dᵀ <= Q-part + G-part.

        Args:
            rank: at most the width of the space.
            missed: an upper bound of |G|₂.
            energy: |D|².
        """
        rest = torch.linalg.qr(self._rest, mode="r").R @ self._y[-self._width :]
        columns = torch.linalg.vector_norm(rest, dim=0)
        kept = float(self.values[:rank].sum())
        bound = kept + min(rank * missed, max(energy - float(self.values.sum()), 0.0))
        free = (self.values[rank - 1] - self.values).clamp(min=0)
        tiny = float(self.values[0]) * 1e-12
        for factor in torch.logspace(-6, 1, 29).tolist():
            c = free + factor * columns + tiny
            g = missed + float(torch.linalg.eigvalsh((rest / c) @ rest.T)[-1])
            top = (self.values + c).sort(descending=True).values[:rank]
            bound = min(bound, float(top.clamp(min=g).sum()))
        return bound

    def missed(self, hopeful: Callable[[float], bool]) -> float | None:
        """Return an upper bound of |G|₂, G being D Dᵀ outside of the space.

        By the Lanczos process from a random start. Kuczyński and Woźniakowski, SIAM J. Matrix
        Anal. Appl. 13 (1992), theorem 4.2: after k steps on an m x m matrix, the chance that the
        largest Ritz value ξ is below (1 - ε) times the largest eigenvalue is at most
        1.648 √m exp(-(2k - 1) √ε). It makes no assumption about the matrix. ε is chosen
        for the chance to be `FAILURE`.

        Args:
            hopeful: whether a bound would be of use. It is asked after some steps, with ξ, which no
                bound can be below; None comes back where it says no.
        """
        d, m = self._d, self._d.shape[0]
        root = math.log(1.648 * math.sqrt(m) / FAILURE) / (2 * STEPS - 1)
        start = torch.randn(m, 1, generator=self._generator, dtype=torch.float64).to(d.device)
        v = self._outside(start)
        known = v / v.norm()
        images = known[:, :0]
        while True:
            image = self._outside((d @ (d.T @ known[:, -1:].float())).double())
            images = torch.cat([images, image], dim=1)
            steps = images.shape[1]
            rest = image
            for _ in range(2):
                rest = rest - known @ (known.T @ rest)
            # Where nothing is left, the process has seen all there is.
            last = steps == STEPS or float(rest.norm()) <= ROUNDING * float(self.values[0])
            if last or steps == STEPS // 6:
                found = max(float(torch.linalg.eigvalsh(known.T @ images)[-1]), 0.0)
                if last:
                    return found / (1 - root**2)
                if not hopeful(found):
                    return None
            known = torch.cat([known, rest / rest.norm()], dim=1)

    def _outside(self, x: Tensor) -> Tensor:
        """Project on the complement of the space; twice, as rounding asks for."""
        for _ in range(2):
            x = x - self._q @ (self._q.T @ x)
        return x


def _rank_for(values: Tensor, energy: float) -> int:
    """Return how many of the values it takes to reach a sum: one too many if all do not."""
    return int((values.cumsum(0) < energy).sum()) + 1


def _energy(x: Tensor) -> float:
    """Return |x|², summed in float64."""
    rows = range(0, x.shape[0], 1024)
    return math.fsum(float(x[at : at + 1024].double().square().sum()) for at in rows)


def _balanced(
    u: Tensor, projected: Tensor, *, norm: float, best: float, exact: bool
) -> Approximation:
    """Split U (Uᵀ D) so that the columns of B and the rows of A have equal norms.

    Without it one side would hold the squares of the other's range: half precision over- or
    underflows there first.
    """
    root = torch.linalg.vector_norm(projected, dim=1).sqrt()
    # The least values' rows may be zero, and zero they stay.
    inverse = torch.where(root > 0, 1 / root, 0)
    return Approximation(
        b=u * root, a=projected * inverse[:, None], norm=norm, best=best, exact=exact
    )


def _transposed(found: Approximation) -> Approximation:
    return Approximation(
        b=found.a.T, a=found.b.T, norm=found.norm, best=found.best, exact=found.exact
    )
