"""Llama over pages takes its base's projections apart layer by layer."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from worker.engine.cuda import projections as fused_projections
from worker.engine.cuda import torch_ops
from worker.engine.models import paged_llama
from worker.engine.models.llama_common import projections
from worker.engine.models.paged_llama import PagedLlama


def test_a_layers_projections_are_dropped_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are adjacent in a GPU's memory: one by one, they would leave gaps that nothing fits into."""
    config = MistralConfig(
        hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2
    )
    with torch.device("meta"):
        base: Any = MistralForCausalLM(config)
    weights = [weakref.ref(projection.weight) for projection in projections(base).values()]
    remaining: list[int] = []
    fuse = fused_projections.fuse_projections

    def counting(*arguments: Any) -> Any:
        remaining.append(sum(weight() is not None for weight in weights))
        return fuse(*arguments)

    monkeypatch.setattr(paged_llama, "fuse_projections", counting)
    PagedLlama(base, {}, 3, torch_ops, 128)
    assert remaining == [14] * 4 + [7] * 4
    assert not any(weight() is not None for weight in weights)
