"""Chooses the implementation of LoRA linear layers, and makes a model's layers of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import nn

from worker.engine.lora.factors import LoRAFactors, Projection
from worker.engine.lora.grouped_linear import GroupedLoRALinear
from worker.engine.lora.mapping import LoRAMapping
from worker.engine.lora.merged_linear import MergedLoRALinear
from worker.engine.lora.stacked_linear import StackedLoRALinear

#: An implementation of linear layers with the adapters of a batch.
LoRALinear = type[GroupedLoRALinear] | type[MergedLoRALinear] | type[StackedLoRALinear]
#: Maximum bytes of weights that are held once for each adapter: about a processor's cache.
MAX_MERGED_BYTES = 2**25


def choose_lora_linear(models: Mapping[str, PeftModel]) -> LoRALinear:
    """Choose the implementation that suits the size of models that share a base on a CPU."""
    bases: dict[str, Any] = {}
    for model in models.values():
        modules = model.get_base_model().named_modules()
        bases |= {name: m.get_base_layer() for name, m in modules if isinstance(m, LoraLayer)}
    for linear in bases.values():
        if type(linear) is not nn.Linear or linear.weight.dtype is not torch.float32:
            return GroupedLoRALinear
    merged_bytes = len(models) * sum(linear.weight.nbytes for linear in bases.values())
    return MergedLoRALinear if merged_bytes <= MAX_MERGED_BYTES else GroupedLoRALinear


class LoRALayers:
    """Makes LoRA linear layers of a base's projections and the factors of all adapters."""

    def __init__(
        self,
        base: nn.Module,
        factors: dict[str, list[LoRAFactors | None]],
        num_adapters: int,
        lora_linear: LoRALinear,
    ) -> None:
        """
        Args:
            base: the model.
            factors: as `worker.engine.lora.factors.extract_factors` returns them.
            num_adapters: number of adapters.
            lora_linear: the implementation.
        """
        self.mapping = LoRAMapping()
        #: Names of the layers that have factors.
        self.adapted_names = list(factors)
        self._lora_linear = lora_linear
        self._no_factors: list[LoRAFactors | None] = [None] * num_adapters
        self._factors = {base.get_submodule(name): of_layer for name, of_layer in factors.items()}

    def fuse(self, *layers: nn.Module) -> nn.Module:
        """Fuse layers that read the same input, with their factors, which this object drops."""
        projections = [
            Projection(layer, self._factors.pop(layer, self._no_factors)) for layer in layers
        ]
        return self._lora_linear(projections, self.mapping)
