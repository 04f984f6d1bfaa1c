"""Separates PEFT models into one base and the LoRA factors of all adapters."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import AuxiliaryTrainingWrapper
from torch import Tensor, nn

from worker.engine.interface import EngineError

#: lora_A (rank, in) and lora_B (out, rank) of an adapter in a layer, in the base's dtype; B is multiplied by the scaling.
LoRAFactors = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Projection:
    """A linear layer of the base, and each adapter's factors there; None where an adapter has none."""

    base: nn.Module
    factors: list[LoRAFactors | None]

    @property
    def out_features(self) -> int:
        base: Any = self.base
        return int(base.out_features)


def extract_factors(
    models: dict[str, PeftModel],
) -> tuple[Any, dict[str, list[LoRAFactors | None]]]:
    """Separate the base from the adapters.

    Args:
        models: by adapter name; their bases share the tensors. It is emptied, so that nothing but the
            result holds them.

    Returns:
        the base, and the factors of every adapter by the names of the layers that have any.

    Raises:
        EngineError: an adapter is more than factors beside linear layers.
    """
    factors: dict[str, list[LoRAFactors | None]] = {}
    base: Any = next(iter(models.values())).get_base_model()
    # Beside a quantized layer, PEFT keeps factors in the dtype in which the layer multiplies. A checkpoint of 4 bits names
    # that dtype, which need not be the activations'.
    dtype = next(tensor.dtype for tensor in base.parameters() if tensor.is_floating_point())
    for adapter_id, (adapter_name, model) in enumerate(models.items()):
        for name, layer in _lora_layers(model, adapter_name):
            lora_a: Any = layer.lora_A[adapter_name].weight
            lora_b: Any = layer.lora_B[adapter_name].weight
            scaled_b = lora_b.data * layer.scaling[adapter_name]
            of_layer = factors.setdefault(name, [None] * len(models))
            of_layer[adapter_id] = (lora_a.data.to(dtype), scaled_b.to(dtype))
    models.clear()
    lora_layers = [(name, m) for name, m in base.named_modules() if _is_lora(m)]
    for name, module in lora_layers:
        parent, _, attribute = name.rpartition(".")
        setattr(base.get_submodule(parent), attribute, module.get_base_layer())
    return base, factors


def _lora_layers(model: PeftModel, adapter_name: str) -> Iterator[tuple[str, Any]]:
    """Yield the layers that have factors of an adapter, by name.

    Raises:
        EngineError: the adapter has anything else.
    """
    for name, module in model.get_base_model().named_modules():
        if isinstance(module, AuxiliaryTrainingWrapper):
            raise EngineError(f"the {adapter_name} adapter replaces {name}")
        if not isinstance(module, BaseTunerLayer):
            continue
        layer: Any = module
        if not _is_lora(module) or layer.lora_variant.get(adapter_name) or layer.lora_embedding_A:
            raise EngineError(f"the {adapter_name} adapter is not plain LoRA in {name}")
        if adapter_name in layer.lora_A:
            if layer.lora_B[adapter_name].bias is not None:
                raise EngineError(f"the {adapter_name} adapter has a bias in {name}")
            yield name, layer


def _is_lora(module: Any) -> bool:
    return isinstance(module, LoraLayer)
