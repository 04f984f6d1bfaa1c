"""The interface of a model over rows, and the choice of its implementation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from peft import PeftModel
from torch import Tensor, nn

from worker.engine.attention.row_attention import RowAttention
from worker.engine.lora.factors import extract_factors
from worker.engine.lora.linear import LoRALayers, LoRALinear
from worker.engine.models.llama import LlamaRowModel
from worker.engine.models.llama_common import is_llama, projections
from worker.engine.models.transformers import TransformersRowModel


class RowModel(Protocol):
    """Computes the logits of a batch over a KV cache of rows."""

    def __call__(
        self,
        input_ids: Tensor,
        adapter_ids: Sequence[int],
        attention: RowAttention,
        logits_indices: Sequence[int],
    ) -> Tensor:
        """Compute tokens, store their keys and values, and return logits after some of them.

        Args:
            input_ids: (tokens,) int64.
            adapter_ids: one for each token.
            attention: the step's.
            logits_indices: indices of the tokens after which logits are wanted, ascending.

        Returns:
            (len(logits_indices), vocabulary).
        """
        ...


def build_row_model(models: dict[str, PeftModel], lora_linear: LoRALinear) -> RowModel:
    """Make one model of PEFT models, which cannot be used any more.

    Args:
        models: by adapter name, in the order of the adapter ids; as
            `worker.engine.lora.factors.extract_factors` wants them.
        lora_linear: the implementation of linear layers.
    """
    num_adapters = len(models)
    base, factors = extract_factors(models)
    layers = LoRALayers(base, factors, num_adapters, lora_linear)
    if is_llama(base, factors) and all(type(p) is nn.Linear for p in projections(base).values()):
        return LlamaRowModel(base, layers)
    return TransformersRowModel(base, layers)
