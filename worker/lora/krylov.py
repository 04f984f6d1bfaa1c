"""A block Krylov space of a matrix, with bounds of what it misses. Notation is that of `worker.lora.lowrank`.

After Halko, Martinsson and Tropp, "Finding structure with randomness", SIAM Review 53 (2011), algorithm 4.4,
with all blocks kept as Musco and Musco do (NeurIPS 2015, algorithm 2) and orthonormalized against each other.
Let Q be the orthonormal basis, m x l, and Z = Dᵀ Q. With H = Qᵀ D Dᵀ Q = Zᵀ Z = Y diag(θ) Yᵀ, the projection
on the first k columns of QY leaves exactly |D|² - θ_1 - ... - θ_k (Pythagoras), so the energy that it captures
is known. The energy of the best approximation is bounded by `KrylovSpace.max_energy`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

#: Allowance for rounding in float32 products, as a share of |D|². All bounds include it.
ROUNDING = 2.0**-20
#: Steps of the Lanczos process that bounds what a space missed, and its probability of failure.
LANCZOS_STEPS = 64
FAILURE_PROBABILITY = 1e-9


class KrylovSpace:
    """A growing orthonormal basis Q of the block Krylov space of D Dᵀ from D Ω, Ω Gaussian."""

    def __init__(self, d: Tensor, width: int, generator: torch.Generator) -> None:
        """
        Args:
            d: m x n with m <= n, float32.
            width: the number of columns of a block.
            generator: of the CPU.
        """
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
