"""A Mistral-7B with random weights and three adapters, generated on the device."""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import AutoModelForCausalLM, MistralConfig, PreTrainedTokenizerFast

from jobs.pipeline import Role

TARGETS = [f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")]
#: Tokens of the vocabulary that are not words.
SPECIAL = ["<unk>", "<s>"]


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. Other sizes have Mistral-7B's proportions."""

    vocabulary: int = 32_000
    hidden: int = 4096
    layers: int = 32
    #: Size of a head.
    head: int = 128
    rank: int = 64
    #: Tokens that the model takes, and tokens that each of them attends to, as in v0.1.
    positions: int = 32_768
    window: int = 4096

    @property
    def config(self) -> MistralConfig:
        heads = self.hidden // self.head
        return MistralConfig(
            vocab_size=self.vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.hidden * 7 // 2,
            num_hidden_layers=self.layers,
            num_attention_heads=heads,
            num_key_value_heads=heads // 4,
            head_dim=self.head,
            max_position_embeddings=self.positions,
            sliding_window=self.window,
            bos_token_id=SPECIAL.index("<s>"),
            eos_token_id=None,  # a text ends at max_output_tokens only
        )

    def cache_bytes(self, dtype: torch.dtype) -> int:
        """Return the bytes of one token's keys and values in all layers."""
        return 2 * self.layers * (self.hidden // 4) * dtype.itemsize


@dataclass(frozen=True)
class Weights:
    """Bytes that every step reads."""

    #: The matrices of the layers and of the head. A step reads single rows of the embedding.
    base: int
    #: The factors of all adapters.
    adapters: int

    @classmethod
    def of(cls, adapted: dict[str, PeftModel]) -> Weights:
        base = adapters = 0
        for i, model in enumerate(adapted.values()):
            for name, weight in model.named_parameters():
                if "lora_" in name:
                    adapters += weight.nbytes
                elif not i and "embed_tokens" not in name:  # the bases are the same memory
                    base += weight.nbytes
        return cls(base, adapters)


def build(
    shape: Shape, dtype: torch.dtype, device: torch.device, *, bare: bool = False
) -> dict[str, PeftModel]:
    """Make a PEFT model for each role, by role name, on bases that share their tensors.

    Args:
        shape: its sizes.
        dtype: of all weights.
        device: where they are generated.
        bare: whether the adapters are removed again.
    """
    torch.manual_seed(0)
    auto: Any = AutoModelForCausalLM
    with device:
        base = auto.from_config(shape.config, dtype=dtype).eval()
    lora = LoraConfig(
        r=shape.rank, lora_alpha=2 * shape.rank, target_modules=TARGETS, task_type="CAUSAL_LM"
    )
    models = {}
    for role in Role:
        # Modules of its own around the same tensors; plain LoRA changes none of them.
        own = copy.deepcopy(base, {id(weight): weight for weight in base.parameters()})
        with device:
            model: Any = get_peft_model(
                own, lora, adapter_name=role.value, autocast_adapter_dtype=False
            )
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:  # initially zero: the roles would not differ
                    weight.normal_(std=0.005)
        models[role.value] = model.eval()
        if bare:
            _take_off(model)
    return models


def _take_off(model: nn.Module) -> None:
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            layer.lora_A.clear()
            layer.lora_B.clear()


def tokenizer_for(shape: Shape) -> PreTrainedTokenizerFast:
    """Make a tokenizer with a word for every token, and no stop token."""
    vocabulary = {name: i for i, name in enumerate(SPECIAL)}
    vocabulary |= {f"w{i}": i for i in range(len(SPECIAL), shape.vocabulary)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers has no types there
        tokenizer_object=words, bos_token="<s>", unk_token="<unk>"
    )


def words(rng: random.Random, count: int, shape: Shape) -> str:
    """Generate a text of so many tokens."""
    return " ".join(f"w{rng.randrange(len(SPECIAL), shape.vocabulary)}" for _ in range(count))
