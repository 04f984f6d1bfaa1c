"""Muon: momentum whose matrix is made orthogonal before each step (K. Jordan, 2024).

`torch.optim.Muon` computes in bfloat16, which most CPUs emulate: seconds for each step of a model
as small as ours. This one computes in float32, with the matrices of one shape stacked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

#: Of the quintic a X + (b X Xᵀ + c (X Xᵀ)²) X, which drives singular values towards 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """For the matrices inside a network; embeddings, head and norms are AdamW's."""

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        """
        Args:
            params: matrices (out x in), float32.
            lr: learning rate, on AdamW's scale: a step's entries have a root mean square of
                about 0.2 lr.
            weight_decay: share of a weight that goes at each step, times ``lr``.
        """
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]  # torch's returns a loss
        """Move every parameter that has a gradient."""
        assert closure is None  # noqa: S101 (nobody here uses one)
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], list[Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(tuple(p.shape), []).append(p)
            for (rows, columns), params in shapes.items():
                moved = orthogonal(torch.stack([self._nesterov(p) for p in params]))
                scale = group["lr"] * 0.2 * max(rows, columns) ** 0.5
                for p, direction in zip(params, moved, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(direction, alpha=-scale)

    def _nesterov(self, p: Tensor) -> Tensor:
        assert p.grad is not None  # noqa: S101 (asked before)
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(p.grad, 1 - MOMENTUM)
        return p.grad.lerp(state["momentum"], MOMENTUM)


def orthogonal(x: Tensor) -> Tensor:
    """Bring the singular values of matrices near to 1, with their singular vectors kept.

    Args:
        x: (matrices, m, n), float32.

    Returns:
        the same shape; singular values between about 0.7 and 1.2, but for those that were tiny.
    """
    if x.shape[1] > x.shape[2]:
        return orthogonal(x.mT).mT
    a, b, c = COEFFICIENTS
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
