"""Model types: which the batching engine serves, and which the reference engine."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM

from jobs.pipeline import Role
from tests.integration.batches import SIZES, compare_with_peft, together
from worker.engine.batching.batch_shape import BatchShape
from worker.engine.batching.engine import BatchingEngine
from worker.engine.batching.runner_setup import RunnerOptions
from worker.engine.models.registry import TESTED_MODEL_TYPES, unsupported_reasons

ALL_SIZES = {**SIZES, "bos_token_id": 1, "pad_token_id": 0}
#: Options beyond the sizes: windows shorter than a prompt, experts, heads of
#: another size.
KINDS = ["sliding_attention", "full_attention"]
MORE: dict[str, dict[str, Any]] = {
    "cohere2": {"sliding_window": 4, "layer_types": KINDS},
    "gemma": {"head_dim": 16},
    "gemma3_text": {"head_dim": 16, "sliding_window": 4, "layer_types": KINDS},
    "glm4": {"head_dim": 8},
    "gpt_neox": {"num_key_value_heads": 4},
    "gpt_bigcode": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "mistral": {"head_dim": 16, "sliding_window": 4},
    "mixtral": {"num_local_experts": 4},
    "opt": {"num_key_value_heads": 4, "ffn_dim": 64, "word_embed_proj_dim": 32},
    "qwen2": {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1},
    "qwen2_moe": {
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
    "qwen3": {
        "head_dim": 16,
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
    },
    "starcoder2": {"sliding_window": 4},
}
#: Target modules where PEFT would also adapt experts, which are no linear layers.
TARGETS = {"mixtral": ["q_proj", "v_proj", "o_proj"]}
#: Model types with other names for the sizes.
OWN_SIZES = {"gpt_bigcode"}


def model(kind: str) -> Any:
    """A random model with three adapters of different ranks, in every linear layer as a rule."""
    sizes = {k: v for k, v in ALL_SIZES.items() if kind not in OWN_SIZES or "token_id" in k}
    config = AutoConfig.for_model(kind, **{**sizes, "vocab_size": 768, **MORE.get(kind, {})})
    torch.manual_seed(3)
    factory: Any = AutoModelForCausalLM  # transformers has no types there
    built = factory.from_config(config)
    for rank, role in enumerate(Role, start=2):
        targets = TARGETS.get(kind, "all-linear")
        adapter = LoraConfig(r=rank, lora_alpha=4, target_modules=targets)
        if rank == 2:
            built = get_peft_model(built, adapter, adapter_name=role.value)
        else:
            built.add_adapter(role.value, adapter)
    with torch.no_grad():
        for name, weight in built.named_parameters():
            if weight.dim() > 1:
                weight.normal_(std=0.2 if "lora_" in name else 0.3)
    return built.eval()


@pytest.mark.parametrize("kind", sorted(TESTED_MODEL_TYPES))
def test_scores_in_a_mixed_batch_are_pefts(kind: str, tokenizer: Any) -> None:
    adapted = model(kind)
    assert unsupported_reasons(adapted.config, 512) == []
    compare_with_peft(adapted, tokenizer)


@pytest.mark.parametrize("kind", ["gemma3_text", "gpt_neox", "mixtral", "qwen3"])
def test_scores_over_blocks_are_pefts(kind: str, tokenizer: Any) -> None:
    """For windows, experts and adapters on the head. Paging does not affect the other differences."""
    compare_with_peft(model(kind), tokenizer, paged=True)


def test_a_step_of_padding_takes_learned_position_embeddings(tokenizer: Any) -> None:
    """It measures memory when a worker starts on a GPU, where an index out of range would lose the device."""
    engine = BatchingEngine.from_models(
        together(model("gpt_bigcode")),
        tokenizer,
        RunnerOptions(max_model_len=64, max_num_seqs=3, paged=True),
    )
    runner: Any = engine._runner
    runner.dummy_run(
        BatchShape(num_decode_tokens=3, num_tokens=8, num_tiles=1, num_samples=3, max_kv_len=64)
    )
    engine.close()
