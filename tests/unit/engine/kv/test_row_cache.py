"""A KV cache of rows takes memory for what was written."""

from __future__ import annotations

import pytest
import torch
from transformers import MistralConfig

from worker.engine.kv.row_cache import RowKVCache
from worker.usage import resident_memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_short_texts_take_little_memory(dtype: torch.dtype) -> None:
    """Rows are as long as the context, 200 MB together in float32. With huge pages, short texts took all of it."""
    config = MistralConfig(
        hidden_size=192, num_hidden_layers=4, num_attention_heads=6, num_key_value_heads=3
    )
    cache = RowKVCache(config, num_rows=16, max_model_len=4096, dtype=dtype)
    before = resident_memory()
    assert not any(tensor[:, :, :60].any() for tensor in (*cache.keys, *cache.values))
    for tensor in (*cache.keys, *cache.values):
        tensor[:, :, :60] = 1.5
    after = resident_memory()
    assert before is not None
    assert after is not None
    assert after - before < cache.nbytes / 8
    assert all((t[:, :, :60] == 1.5).all() and not t[:, :, 60:].any() for t in cache.keys)
