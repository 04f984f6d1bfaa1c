"""A base of 4 bits in bitsandbytes' format, without bitsandbytes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from worker.bench.four_bit import FP4, quantize
from worker.engine.cuda.four_bit import QUANT_BLOCK


class Quantized(nn.Module):
    """A linear layer of 4 bits, with the attributes of bitsandbytes' `Linear4bit` that an engine reads."""

    def __init__(self, layer: Any, code: Sequence[float] = FP4) -> None:
        """
        Args:
            layer: `nn.Linear`; its input is a multiple of 128.
            code: the 16 values of a weight.
        """
        super().__init__()
        packed, absmax = quantize(layer.weight.detach(), code)
        self.weight, self.absmax = _constant(packed), _constant(absmax)
        self._code = torch.tensor(code, device=packed.device)
        state: Any = SimpleNamespace(
            absmax=absmax,
            code=self._code,
            shape=layer.weight.shape,
            blocksize=QUANT_BLOCK,
            nested=False,
        )
        self.weight.quant_state = state  # type: ignore[attr-defined]  # bitsandbytes adds it to its parameters
        self.bias = layer.bias
        self.in_features, self.out_features = layer.in_features, layer.out_features

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out) as bitsandbytes does: with the dequantized weight."""
        nibbles = torch.stack([self.weight >> 4, self.weight & 15], dim=-1)
        values = self._code[nibbles.view(-1, QUANT_BLOCK).int()] * self.absmax[:, None]
        return nn.functional.linear(x, values.view(self.out_features, -1).to(x.dtype), self.bias)


def quantize_all(models: Iterable[PeftModel]) -> None:
    """Quantise the layers that have adapters, in place. Bases that share tensors still do.

    Args:
        models: around bases whose tensors are the same memory.
    """
    quantized_weights: dict[int, tuple[Tensor, Quantized]] = {}
    layers: list[Any] = [m for model in models for m in model.modules() if isinstance(m, LoraLayer)]
    # Layers that share a matrix one after the other, so that it is freed at once.
    layers.sort(key=lambda layer: layer.get_base_layer().weight.data_ptr())
    for layer in layers:
        base: Any = layer.get_base_layer()
        key = base.weight.data_ptr()
        if key not in quantized_weights:
            quantized_weights = {key: (base.weight, Quantized(base))}
        layer.base_layer = quantized_weights[key][1]


def _constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
