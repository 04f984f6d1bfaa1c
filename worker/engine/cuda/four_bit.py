"""Linear layers with weights of 4 bits, which are faster on a GPU than those of 16 bits.

The format is bitsandbytes' (QLoRA, Dettmers et al. 2023): codes of 4 bits, and a float32 scale (absmax) for
every 64 weights of a row. With few rows the product is bound by memory, and the codes are read as they are,
a quarter of the bytes. With many it is bound by arithmetic, and the weight is dequantized to 16 bits first.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from worker.engine.interface import EngineError

#: Weights of a row that share a scale, and that are adjacent in memory.
QUANT_BLOCK, GROUP = 64, 128
#: Maximum number of rows whose product reads the codes.
MAX_QUANTIZED_ROWS = 64


@dataclass(frozen=True)
class FourBitWeight:
    """A weight of 4 bits, (out, in), in the layout of the kernels: what a program reads is contiguous."""

    #: (in / 128, out, 16) int32. Byte q of word p of a row's group has the codes of its weights
    #: 32 q + 2 p, in the high bits, and 32 q + 2 p + 1, in the low ones.
    words: Tensor
    #: (in / 64, out) float32: the scale of each block of a row.
    scales: Tensor
    #: (16,) float32: the values of the codes before scaling. `values` are the same on the host.
    code: Tensor
    values: tuple[float, ...]

    @classmethod
    def pack(
        cls, packed: Tensor, absmax: Tensor, code: Tensor, shape: tuple[int, int], blocksize: int
    ) -> FourBitWeight:
        """Convert a weight from bitsandbytes' layout.

        Args:
            packed: out * in / 2 elements, uint8: two weights each, row by row, the first in the high
                bits.
            absmax: (out * in / blocksize,) float32.
            code: (16,) float32.
            shape: (out, in); in a multiple of 128 and of the blocksize.
            blocksize: a multiple of 64.
        """
        rows, columns = shape
        bytes_ = packed.reshape(rows, columns // GROUP, 4, 16)
        words = bytes_.permute(1, 0, 3, 2).contiguous().view(torch.int32)[..., 0]
        scales = absmax.reshape(rows, -1).repeat_interleave(blocksize // QUANT_BLOCK, dim=1)
        code = code.to(absmax)
        return cls(words, scales.T.contiguous(), code, tuple(code.tolist()))

    @classmethod
    def fuse(cls, weights: Sequence[FourBitWeight]) -> FourBitWeight:
        """Fuse weights that read the same input.

        Raises:
            EngineError: they are of different 4-bit types.
        """
        first = weights[0]
        if any(weight.values != first.values for weight in weights):
            raise EngineError("layers of different 4-bit types cannot be fused")
        if len(weights) == 1:
            return first
        words = torch.cat([weight.words for weight in weights], dim=1)
        scales = torch.cat([weight.scales for weight in weights], dim=1)
        return cls(words, scales, first.code, first.values)

    @property
    def out_features(self) -> int:
        return self.words.shape[1]

    @property
    def in_features(self) -> int:
        return self.words.shape[0] * GROUP

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """Return the weight, (out, in), bit for bit as bitsandbytes dequantizes it."""
        if self.words.is_cuda:
            from worker.engine.cuda import four_bit_kernels

            return four_bit_kernels.dequantize(self, dtype)
        bytes_ = self.words[..., None].view(torch.uint8).permute(1, 0, 3, 2)
        codes = torch.stack([bytes_ >> 4, bytes_ & 15], dim=-1).view(
            self.out_features, -1, QUANT_BLOCK
        )
        matrix = self.code[codes.int()] * self.scales.T[..., None]
        return matrix.flatten(1).to(dtype)


class FourBitLinear(nn.Module):
    """Fused linear layers of 4 bits."""

    def __init__(self, weight: FourBitWeight, bias: Tensor | None = None) -> None:
        """
        Args:
            weight: (out, in).
            bias: (out,).
        """
        super().__init__()
        self.weight, self.bias = weight, bias
        self.in_features, self.out_features = weight.in_features, weight.out_features

    @classmethod
    def fuse(cls, layers: Sequence[Any]) -> FourBitLinear:
        """Fuse bitsandbytes' layers. The result shares no memory with them except a single bias.

        Args:
            layers: quantized `Linear4bit` for which `unsupported_reason` returns None.

        Raises:
            EngineError: a layer cannot be converted, or they are of different types.
        """
        for layer in layers:
            if reason := unsupported_reason(layer):
                raise EngineError(f"a layer of 4 bits cannot be used: {reason}")
        biases = [layer.bias for layer in layers]
        weight = FourBitWeight.fuse([_convert(layer) for layer in layers])
        if all(bias is None for bias in biases):
            return cls(weight)
        dtype = next(bias.dtype for bias in biases if bias is not None)
        parts = [
            weight.scales.new_zeros(layer.out_features, dtype=dtype)
            if bias is None
            else bias.detach().to(dtype)
            for layer, bias in zip(layers, biases, strict=True)
        ]
        return cls(weight, torch.cat(parts) if len(parts) > 1 else parts[0])

    def forward(self, x: Tensor) -> Tensor:
        """Map (…, in) to (…, out) of the same dtype. A CUDA graph can capture it.

        On a GPU in 16 bits, a row's result depends on the other rows only in whether there are more than
        `MAX_QUANTIZED_ROWS`.
        """
        rows = x.reshape(-1, x.shape[-1])
        bias = None if self.bias is None else self.bias.to(x.dtype)
        if (
            x.is_cuda
            and x.dtype in (torch.bfloat16, torch.float16)
            and 0 < len(rows) <= MAX_QUANTIZED_ROWS
        ):
            from worker.engine.cuda import four_bit_kernels

            out = four_bit_kernels.multiply(rows, self.weight, bias)
        else:
            out = nn.functional.linear(rows, self.weight.dequantize(x.dtype), bias)
        return out.view(*x.shape[:-1], self.out_features)


def unsupported_reason(layer: Any) -> str | None:
    """Return why a layer cannot be a `FourBitLinear`; None if it can."""
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        return "it is not quantised to 4 bits"
    if getattr(state, "packing_format_for_cpu", False):
        return "bitsandbytes has packed it for a CPU"
    columns = state.shape[-1]
    if len(state.shape) != 2 or columns % GROUP or columns % state.blocksize:
        return f"its shape is {tuple(state.shape)}, in blocks of {state.blocksize}"
    if state.blocksize % QUANT_BLOCK:
        return f"its block size is {state.blocksize}"
    return None


def code_of(layer: Any) -> tuple[float, ...] | None:
    """Return the 16 values of a quantized layer's codes; None for a layer that is not quantized."""
    state = getattr(layer.weight, "quant_state", None)
    return None if state is None else tuple(state.code.tolist())


def _convert(layer: Any) -> FourBitWeight:
    state = layer.weight.quant_state
    absmax = state.absmax
    if state.nested:  # the scales are of 8 bits themselves: QLoRA's double quantisation
        nested = state.state2
        scales = nested.absmax.repeat_interleave(nested.blocksize)[: absmax.numel()]
        absmax = nested.code[absmax.int()] * scales + state.offset
    packed = layer.weight.data.view(torch.uint8)
    return FourBitWeight.pack(
        packed, absmax.float(), state.code, tuple(state.shape), state.blocksize
    )
