"""A 4-bit base with adapters, quantized by bitsandbytes on the CPU.

Where the package's extra `quantization` is not installed there is nothing to test.
"""

from __future__ import annotations

import gc
import random
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from jobs.pipeline import Role, Sampling
from tests.conftest import find, load_models
from tests.integration.batches import CONTEXT, request
from tests.random_weights import build
from worker.checkpoints import loading
from worker.engine import probe
from worker.engine.batching.engine import BatchingEngine
from worker.engine.batching.runner_setup import RunnerOptions
from worker.engine.interface import Engine, Request
from worker.engine.lora.grouped_linear import GroupedLoRALinear
from worker.engine.lora.linear import LoRALinear
from worker.engine.lora.stacked_linear import StackedLoRALinear
from worker.engine.reference import ReferenceEngine

pytest.importorskip("bitsandbytes")

#: Settings of bitsandbytes: its defaults, and others that a base may have.
SETTINGS: dict[str, dict[str, Any]] = {
    "fp4": {},
    "nf4": {"bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    # One of three, one of two and a single projection stay unquantized.
    "mixed": {"llm_int8_skip_modules": ["lm_head", "k_proj", "up_proj", "o_proj"]},
}


@pytest.fixture(autouse=True)
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """On CPUs with bfloat16 instructions, bitsandbytes rounds to it, and texts differ."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose layers are wide enough for the kernels' layout."""
    folder = tmp_path_factory.mktemp("wide")
    build(folder, hidden=128)
    return folder


@pytest.fixture(params=SETTINGS)
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The kind of 4-bit quantization."""
    config = partial(transformers.BitsAndBytesConfig, **SETTINGS[request.param])
    monkeypatch.setattr(transformers, "BitsAndBytesConfig", config)
    return str(request.param)


def load(checkpoint: Path) -> Any:
    return loading.load(replace(find(checkpoint), quantization="4bit")).models


def mixture() -> list[Request]:
    rng = random.Random(6)
    return [replace(request(rng), role=role) for role in Role for _ in range(4)]


def answers(engine: Engine, requests: list[Request]) -> list[str]:
    texts = [g.result().text for g in [engine.submit(r) for r in requests]]
    engine.close()
    return texts


def test_the_base_is_quantized_and_the_adapters_are_not(checkpoint: Path) -> None:
    plain, quantized = load_models(checkpoint), load(checkpoint)
    for projection in ("q_proj", "down_proj"):
        [before, *_], [after, *_] = (
            [m for name, m in models["actor"].named_modules() if name.endswith(projection)]
            for models in (plain, quantized)
        )
        assert after.base_layer.weight.nbytes * 8 == before.base_layer.weight.nbytes
        assert torch.equal(after.lora_B["actor"].weight, before.lora_B["actor"].weight)
    description = replace(find(checkpoint), quantization="4bit").describe("batching")
    assert description["quantization"] == "4bit"
    assert "bitsandbytes" in description["versions"]


@pytest.mark.parametrize("form", [GroupedLoRALinear, StackedLoRALinear])
def test_roles_are_mixed_in_a_batch(checkpoint: Path, tokenizer: Any, form: LoRALinear) -> None:
    """The first implementation is the CPU's, the second the GPU's."""
    requests = mixture()
    engine = BatchingEngine.from_models(
        load(checkpoint),
        tokenizer,
        RunnerOptions(max_model_len=CONTEXT, max_num_seqs=8, lora_linear=form),
    )
    texts = answers(engine, requests)
    reference = ReferenceEngine(load(checkpoint), tokenizer, max_model_len=CONTEXT)
    assert texts == [reference.submit(request).result().text for request in requests]
    sampling = Sampling(temperature=0, max_output_tokens=24)
    greedy_texts = {
        reference.submit(Request(role, "gravity", sampling)).result().text for role in Role
    }
    reference.close()
    assert len(greedy_texts) == 3, "the adapters matter"


class Tracer:
    """A fake CUDA graph: it repeats the recorded operations, and nothing else."""

    def __init__(self) -> None:
        self.replayed = 0

    def __call__(self, step: Callable[[Tensor], Any], inputs: Tensor) -> Callable[[], Any]:
        traced = make_fx(step)(inputs)

        def replay() -> Any:
            self.replayed += 1
            return traced(inputs)

        return replay


def test_fused_layers_change_no_text(
    wide: Path, tokenizer: Any, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """As on a GPU, except for the kernels: paged, and once with CUDA graphs."""
    tracer = Tracer() if kind == "nf4" else None
    requests = mixture()
    loaded = loading.load(replace(find(wide), quantization="4bit"))
    base = loaded.models["actor"].get_base_model()
    assert type(base.lm_head) is torch.nn.Linear, "bitsandbytes does not quantize the head"
    engine = BatchingEngine.from_models(
        loaded.models,
        tokenizer,
        RunnerOptions(
            max_model_len=CONTEXT,
            max_num_seqs=4,
            max_num_batched_tokens=32,
            paged=True,
            capture=lambda _device: tracer,
        ),
    )
    assert not [r for r in caplog.records if "transformers" in r.getMessage()]
    scores = engine.compute_logits(probe.probe_token_ids(find(wide).config))
    probe.check(scores, loaded.probe_logits, torch.float32, 1e-5)
    texts = answers(engine, requests)
    assert tracer is None or tracer.replayed > len(requests)
    assert texts == answers(ReferenceEngine(load(wide), tokenizer, max_model_len=CONTEXT), requests)


@pytest.mark.usefixtures("kind")
def test_no_weight_is_in_memory_twice(wide: Path, tokenizer: Any) -> None:
    before = {id(x) for x in bytes_held()}
    models = load(wide)
    modules = models["actor"].modules()
    originals = [weakref.ref(m.weight) for m in modules if hasattr(m, "quant_state")]
    assert len(originals) >= 8
    del modules
    engine = BatchingEngine.from_models(
        models, tokenizer, RunnerOptions(max_model_len=CONTEXT, max_num_seqs=2, paged=True)
    )
    gc.collect()
    assert not [original for original in originals if original() is not None]
    # Neither packed weights in another tensor nor 8-bit factors.
    assert not [x.shape for x in bytes_held() if id(x) not in before]
    engine.close()


def bytes_held() -> list[Tensor]:
    """Return all uint8 tensors of more than 64 bytes."""
    gc.collect()
    # By type: some objects warn when `__class__` is read.
    tensors = [x for x in gc.get_objects() if issubclass(type(x), Tensor)]
    return [x for x in tensors if x.dtype is torch.uint8 and x.numel() > 64]


def test_layers_that_cannot_be_fused_are_left_to_transformers(
    checkpoint: Path, tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    requests = mixture()
    engine = BatchingEngine.from_models(
        load(checkpoint),
        tokenizer,
        RunnerOptions(max_model_len=CONTEXT, max_num_seqs=8, paged=True),
    )
    [warning] = [
        r.getMessage() for r in caplog.records if r.name == "worker.engine.batching.runner_setup"
    ]
    assert "q_proj" in warning
    assert "(64, 64)" in warning
    texts = answers(engine, requests)
    assert texts == answers(
        ReferenceEngine(load(checkpoint), tokenizer, max_model_len=CONTEXT), requests
    )
