"""Forward passes over rows: the logits are transformers', in any split into steps."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, MistralConfig, Qwen2Config, Qwen3Config

from worker.engine.attention.row_attention import RowAttention
from worker.engine.attention.row_metadata import DecodeSpan, PrefillSpan
from worker.engine.kv.row_cache import RowKVCache
from worker.engine.lora.grouped_linear import GroupedLoRALinear
from worker.engine.lora.linear import LoRALayers
from worker.engine.models.llama import LlamaRowModel
from worker.engine.models.llama_common import is_llama
from worker.engine.models.model import RowModel
from worker.engine.models.transformers import TransformersRowModel

VOCABULARY, CONTEXT = 40, 32
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
}
CONFIGS = {
    "llama": LlamaConfig(**SIZES),
    "mistral, tied": MistralConfig(**SIZES, sliding_window=None, tie_word_embeddings=True),
    "mistral, sliding window": MistralConfig(**SIZES, sliding_window=5),
    "qwen2, biases": Qwen2Config(**SIZES),
    "qwen3, by transformers": Qwen3Config(**SIZES, head_dim=8),
}
PROMPTS = [list(range(3, 15)), list(range(20, 29))]


class Rows:
    """A model with a cache, which computes one step after the other."""

    def __init__(self, model: RowModel, config: Any) -> None:
        self._model = model
        self._cache = RowKVCache(config, num_rows=3, max_model_len=CONTEXT, dtype=torch.float32)

    def compute(
        self, spans: list[DecodeSpan | PrefillSpan], tokens: list[int], logits_indices: list[int]
    ) -> Tensor:
        attention = RowAttention.build(self._cache, spans)
        return self._model(torch.tensor(tokens), [0] * len(tokens), attention, logits_indices)


@pytest.fixture(params=CONFIGS)
def case(request: pytest.FixtureRequest) -> tuple[Rows, list[Tensor]]:
    """A model over rows, and transformers' logits after each token of the prompts."""
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIGS[request.param])  # the model changes it
    factory: Any = AutoModelForCausalLM
    base = factory.from_config(config).eval()
    with torch.inference_mode():
        logits = [base(torch.tensor([prompt])).logits[0] for prompt in PROMPTS]
    layers = LoRALayers(base, {}, 1, GroupedLoRALinear)
    kind = LlamaRowModel if is_llama(base, ()) else TransformersRowModel
    assert (kind is TransformersRowModel) == ("transformers" in request.param)
    return Rows(kind(base, layers), config), logits


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_prompts_in_chunks_and_decoding_give_the_logits(case: tuple[Rows, list[Tensor]]) -> None:
    """Two sequences: a prompt in chunks beside a decoding one, then both decode."""
    rows, (first, second) = case
    a, b = PROMPTS
    logits = rows.compute([PrefillSpan(0, 0, 10)], a[:10], [9])
    close(logits, first[9:10])
    spans: list[Any] = [DecodeSpan([0], [10], [1]), PrefillSpan(2, 0, 5)]
    logits = rows.compute(spans, [a[10], *b[:5]], [0])
    close(logits, first[10:11])
    close(rows.compute([PrefillSpan(2, 5, 3)], b[5:8], [2]), second[7:8])
    logits = rows.compute([DecodeSpan([0, 2], [11, 8], [1, 1])], [a[11], b[8]], [0, 1])
    close(logits, torch.stack([first[11], second[8]]))


def test_logits_after_each_draft_token(case: tuple[Rows, list[Tensor]]) -> None:
    rows, (first, _) = case
    tokens = PROMPTS[0]
    rows.compute([PrefillSpan(1, 0, 6)], tokens[:6], [5])
    logits = rows.compute([DecodeSpan([1], [6], [4])], tokens[6:10], [0, 1, 2, 3])
    close(logits, first[6:10])


def test_a_chunk_without_logits_stores_its_keys_and_values(
    case: tuple[Rows, list[Tensor]],
) -> None:
    rows, (first, _) = case
    tokens = PROMPTS[0]
    assert rows.compute([PrefillSpan(0, 0, 8)], tokens[:8], []).shape == (0, VOCABULARY)
    close(rows.compute([PrefillSpan(0, 8, 4)], tokens[8:], [3]), first[11:])
