"""Models and questions to measure with: checkpoints, or random weights."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    MistralConfig,
    PreTrainedTokenizerBase,
)

from jobs.pipeline import Role
from worker.engine.role_models import load_adapter

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Model:
    """The folders of a base with its tokenizer, and of an adapter for each role."""

    base: Path
    adapters: dict[Role, Path]

    @classmethod
    def of(cls, folder: Path) -> Model:
        """Return the model of a folder with ``base`` and a folder for each role, as the demo's."""
        return cls(folder / "base", {role: folder / role for role in Role})

    def load(self, dtype: torch.dtype, device: torch.device) -> dict[str, PeftModel]:
        """Load a PEFT model for each role, by role name, as engines take them."""
        base: Any = AutoModelForCausalLM.from_pretrained(self.base, dtype=dtype)
        base.to(device)
        return {
            role.value: load_adapter(base, folder, role.value)[0]
            for role, folder in self.adapters.items()
        }


def synthetic(
    folder: Path,
    tokenizer: Path,
    *,
    hidden: int,
    layers: int,
    rank: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
    seed: int = 0,
) -> Model:
    """Create a Mistral with random weights and three random adapters. Its texts end at the token limit.

    Args:
        folder: an empty one.
        tokenizer: a folder with a tokenizer of at most 32,000 tokens.
        hidden: hidden size; other sizes have Mistral-7B's proportions (heads of 64).
        layers: number of layers.
        rank: of the adapters.
        dtype: of all weights.
        device: where the weights are generated.
        seed: of all weights.
    """
    torch.manual_seed(seed)
    heads = hidden // 64
    config = MistralConfig(
        vocab_size=32_000,
        hidden_size=hidden,
        intermediate_size=hidden * 7 // 2,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=max(1, heads // 4),
        max_position_embeddings=4096,
        sliding_window=None,
        eos_token_id=2,
    )
    auto: Any = AutoModelForCausalLM
    with device:
        base = auto.from_config(config, dtype=dtype)
    base.save_pretrained(folder / "base")
    AutoTokenizer.from_pretrained(tokenizer).save_pretrained(folder / "base")
    targets = [f"{p}_proj" for p in ("q", "k", "v", "o", "gate", "up", "down")]
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, task_type="CAUSAL_LM")
    for role in Role:
        adapter: Any = get_peft_model(base, lora, autocast_adapter_dtype=False)
        with torch.no_grad():
            for name, weight in adapter.named_parameters():
                if "lora_B" in name:
                    weight.normal_(std=0.02)
        adapter.save_pretrained(str(folder / role), save_embedding_layers=False)
        base = adapter.unload()
    return Model(folder / "base", {role: folder / role for role in Role})


def questions(tokenizer: PreTrainedTokenizerBase, count: int, tokens: int, seed: int) -> list[str]:
    """Generate random questions of at least this many tokens each."""
    rng = random.Random(seed)
    decoded = [str(tokenizer.decode([i])).strip() for i in range(len(tokenizer))]
    words = [text for text in decoded if text.isalpha()]
    texts = []
    for _ in range(count):
        question = rng.choice(words)
        while len(tokenizer.encode(question)) < tokens:
            question += f" {rng.choice(words)}"
        texts.append(question)
    return texts
