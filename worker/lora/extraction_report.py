"""The result of an extraction, in numbers."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class LayerReport:
    """How well B A approximates a linear layer's difference D. Errors are relative to |D|."""

    name: str
    #: (out, in)
    shape: tuple[int, int]
    rank: int
    #: |D|, the Frobenius norm.
    norm: float
    #: 1 - error².
    kept: float
    #: |D - B A| / |D|, measured on the saved factors.
    error: float
    #: A lower bound of the error of any factors of this rank.
    best_error_at_least: float
    #: Whether the factors come from a full decomposition, not from a sketch.
    exact: bool
    seconds: float

    @property
    def excess(self) -> float | None:
        """An upper bound of how far the error is above the best, as a share of the best.

        None if the best may be 0.
        """
        best = self.best_error_at_least
        return max(self.error / best - 1, 0.0) if best > 0 else None


@dataclass(frozen=True)
class GroupReport:
    """The differences in parameters that are not linear layers, by kind."""

    #: embeddings, head, norms, biases or other.
    kind: str
    #: Number of tensors that differ.
    tensors: int
    #: Frobenius norm of their difference.
    norm: float
    #: Whether the adapter stores the fine-tune's tensors.
    kept: bool


@dataclass(frozen=True)
class ExtractionReport:
    """The result of an extraction, in numbers."""

    layers: list[LayerReport]
    rest: list[GroupReport]
    #: Number of parameters, and bytes, of the adapter's tensors.
    parameters: int
    bytes: int
    seconds: float
    warnings: list[str]

    @property
    def norm(self) -> float:
        """Frobenius norm of all layers' differences."""
        return math.hypot(*(layer.norm for layer in self.layers))

    @property
    def error(self) -> float:
        """Error of all layers, as a share of `norm`."""
        error = math.hypot(*(layer.error * layer.norm for layer in self.layers))
        return error / self.norm if error else 0.0

    def to_json(self) -> dict[str, Any]:
        return {
            "layers": [{**asdict(layer), "excess_at_most": layer.excess} for layer in self.layers],
            "rest": [asdict(rest) for rest in self.rest],
            "total": {
                "norm": self.norm,
                "kept": 1 - self.error**2,
                "error": self.error,
                "parameters": self.parameters,
                "bytes": self.bytes,
                "seconds": self.seconds,
            },
            "warnings": self.warnings,
        }
