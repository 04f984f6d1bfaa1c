"""A base of 4 bits, with the adapters on top of it: really quantised, by bitsandbytes on the CPU.

Where the package's extra `quantization` is not installed there is nothing to test.
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs.pipeline import Role, Sampling
from tests.conftest import find, load_models
from tests.integration.batches import CONTEXT, request
from worker import loading
from worker.engine.adapters import Form, GroupedLinear, StackedLinear
from worker.engine.batching import BatchingEngine
from worker.engine.interface import Request
from worker.engine.reference import ReferenceEngine

pytest.importorskip("bitsandbytes")


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a CPU multiplies bfloat16, bitsandbytes rounds to it, and texts part."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


def load(checkpoint: Path) -> Any:
    return loading.load(replace(find(checkpoint), quantization="4bit")).models


def test_the_base_is_quantised_and_the_adapters_are_not(checkpoint: Path) -> None:
    plain, quantised = load_models(checkpoint), load(checkpoint)
    for projection in ("q_proj", "down_proj"):
        [before, *_], [after, *_] = (
            [m for name, m in models["actor"].named_modules() if name.endswith(projection)]
            for models in (plain, quantised)
        )
        assert after.base_layer.weight.nbytes * 8 == before.base_layer.weight.nbytes
        assert torch.equal(after.lora_B["actor"].weight, before.lora_B["actor"].weight)
    found = replace(find(checkpoint), quantization="4bit").describe("batching")
    assert found["quantization"] == "4bit"
    assert "bitsandbytes" in found["versions"]


@pytest.mark.parametrize("form", [GroupedLinear, StackedLinear])
def test_roles_are_mixed_in_a_batch(checkpoint: Path, tokenizer: Any, form: Form) -> None:
    """The first form is the CPU's, the second one the GPU's."""
    rng = random.Random(6)
    requests = [replace(request(rng), role=role) for role in Role for _ in range(4)]
    engine = BatchingEngine(load(checkpoint), tokenizer, context=CONTEXT, slots=8, form=form)
    found = [g.result().text for g in [engine.submit(each) for each in requests]]
    engine.close()
    reference = ReferenceEngine(load(checkpoint), tokenizer, context=CONTEXT)
    assert found == [reference.submit(each).result().text for each in requests]
    sampling = Sampling(temperature=0, max_output_tokens=24)
    texts = {reference.submit(Request(role, "gravity", sampling)).result().text for role in Role}
    reference.close()
    assert len(texts) == 3, "the adapters matter"
