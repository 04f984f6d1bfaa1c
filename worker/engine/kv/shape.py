"""Sizes of a model's keys and values."""

from __future__ import annotations

import torch
from transformers import PreTrainedConfig


def kv_head_shape(config: PreTrainedConfig) -> tuple[int, int]:
    """Return a model's number of key-value heads, and their size."""
    num_heads = config.num_attention_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    return int(num_kv_heads), int(head_size)


def kv_bytes_per_token(config: PreTrainedConfig, dtype: torch.dtype) -> int:
    """Return the bytes of one token's keys and values in all layers."""
    num_kv_heads, head_size = kv_head_shape(config)
    return int(2 * config.num_hidden_layers * num_kv_heads * head_size * dtype.itemsize)
