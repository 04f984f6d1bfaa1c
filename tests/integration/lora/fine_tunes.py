"""Small models and fine-tunes of them, for tests of the adapter tools."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
)

RANK = 4
IDS = torch.tensor([[1, 20, 300, 40, 500, 60, 7, 80]])
DOWN = "model.layers.1.mlp.down_proj.weight"
LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
#: Sizes of small models of any architecture.
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}


def is_linear(name: str) -> bool:
    return name.endswith(".weight") and name.split(".")[-2] in LINEAR


def fine_tune(base: Path, folder: Path, *, noise: float = 0.0, rest: float = 0.0) -> Path:
    """Copy a model, with differences of rank `RANK` plus noise in its linear layers.

    Args:
        base: the model.
        folder: where the fine-tune goes.
        noise: the size of what no low rank reproduces.
        rest: the size of the differences in embeddings, head and norms.
    """
    shutil.copytree(base, folder)
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    weights = load_file(folder / "model.safetensors")
    for name, weight in weights.items():
        if is_linear(name):
            m, n = weight.shape
            difference = normal(m, RANK) @ normal(RANK, n) * 0.02 + noise * normal(m, n)
        elif weight.ndim == 2 or "norm" in name:
            difference = rest * normal(*weight.shape)
        else:
            continue
        weights[name] = weight + difference.to(weight)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def logits(folder: Path, adapter: Path | None = None) -> Tensor:
    """Return a model's logits for some tokens, (1, tokens, vocabulary), float32."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    with torch.no_grad():
        scores: Tensor = model(input_ids=IDS).logits
    return scores
