"""Muon: orthogonalizes the momentum of each matrix before a step (K. Jordan, 2024).

`torch.optim.Muon` computes in bfloat16, which most CPUs emulate: a step of this small model takes
seconds. This one computes in float32, and stacks matrices of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

#: Coefficients of a X + (b X Xᵀ + c (X Xᵀ)²) X, whose iteration drives singular values towards 1.
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
MOMENTUM = 0.95


class Muon(torch.optim.Optimizer):
    """The optimizer for hidden matrices. Use AdamW for embeddings, head and norms."""

    def __init__(self, params: Iterable[Tensor], lr: float, weight_decay: float) -> None:
        """
        Args:
            params: matrices (out x in), float32.
            lr: learning rate, on AdamW's scale: a step's entries have a root mean square of
                about 0.2 lr.
            weight_decay: weight decay; each step multiplies weights by ``1 - lr * weight_decay``.
        """
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]  # torch's may return a closure's loss
        """Update every parameter that has a gradient. Closures are not supported."""
        if closure is not None:
            raise NotImplementedError("closures are not supported")
        for group in self.param_groups:
            shapes: dict[tuple[int, ...], dict[Tensor, Tensor]] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(tuple(p.shape), {})[p] = p.grad
            for (rows, columns), gradients in shapes.items():
                updates = orthogonal(
                    torch.stack([self._nesterov(p, grad) for p, grad in gradients.items()])
                )
                scale = group["lr"] * 0.2 * max(rows, columns) ** 0.5
                for p, update in zip(gradients, updates, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update, alpha=-scale)

    def _nesterov(self, p: Tensor, grad: Tensor) -> Tensor:
        state = self.state[p]
        if not state:
            state["momentum"] = torch.zeros_like(p)
        state["momentum"].lerp_(grad, 1 - MOMENTUM)
        return grad.lerp(state["momentum"], MOMENTUM)


def orthogonal(x: Tensor) -> Tensor:
    """Bring the singular values of matrices close to 1 and keep their singular vectors.

    Args:
        x: (matrices, m, n), float32.

    Returns:
        the same shape; singular values between about 0.7 and 1.2, except for tiny ones.
    """
    if x.shape[1] > x.shape[2]:
        return orthogonal(x.mT).mT
    a, b, c = COEFFICIENTS
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + 1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x
