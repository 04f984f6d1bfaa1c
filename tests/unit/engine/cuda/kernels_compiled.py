"""`test_kernels` runs this in a process of its own, where Triton compiles kernels for an H100 without running them.

No device is needed for that: what is launched elsewhere is only compiled here.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, MistralConfig
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from worker.engine.attention.paged_batch import PagedBatch
from worker.engine.batching import runner_setup
from worker.engine.batching.precompile import compile_kernels, meta_runner
from worker.engine.cuda import kernels
from worker.engine.cuda.kernels import (
    activation,
    attention,
    common,
    kv_cache,
    linear,
    norm,
    residual,
    rope,
    sampling,
)
from worker.engine.cuda.kernels.common import FUSED_MULTIPLY_ADD
from worker.engine.cuda.lora_weights import LoRABWeights
from worker.engine.kv.paged_cache import BLOCK_SIZE, PagedKVCache
from worker.engine.lora.factors import Projection

#: Mistral-7B's sizes, with adapters of rank 64.
HIDDEN, INNER, HEADS, SHARED, SIZE, RANK = 4096, 14336, 32, 8, 128, 64
TYPE = torch.bfloat16
MODULES: list[ModuleType] = [
    activation,
    attention,
    kv_cache,
    linear,
    norm,
    residual,
    rope,
    sampling,
]
#: The launch options on an H100.
PDL_OPTIONS = FUSED_MULTIPLY_ADD | {"PDL": True, "launch_pdl": True}


class H100:
    """A fake driver for Triton: a device to compile for, and none to run on."""

    capability = 90

    def get_current_device(self) -> int:
        return self.capability  # what is compiled is kept for each device

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)

    def get_current_stream(self, device: int) -> int:
        return device


class RTX4090(H100):
    """A fake driver, too."""

    capability = 89
    #: Bytes of shared memory that a program can have. On an H100 it is 227 KB.
    shared = 99 * 1024


class Compiled:
    """A kernel that is compiled instead of launched."""

    def __init__(self, kernel: Any, compiled: dict[str, Any]) -> None:
        self._kernel = kernel
        self._compiled = compiled

    def __getitem__(self, grid: Any) -> Callable[..., None]:
        def compile_(*arguments: Any, **options: Any) -> None:
            done = self._kernel.warmup(*arguments, grid=grid, **options)
            self._compiled[self._kernel.__name__] = done

        return compile_


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The compiled kernels by name, filled as they are launched."""
    driver.set_active(H100())
    kernels: dict[str, Any] = {}
    for module in MODULES:
        for name, kernel in list(vars(module).items()):
            if isinstance(kernel, JITFunction) and name.endswith("_kernel"):
                monkeypatch.setattr(module, name, Compiled(kernel, kernels))
        if hasattr(module, "launch_options"):
            monkeypatch.setattr(module, "launch_options", lambda _: PDL_OPTIONS)
    return kernels


def variants() -> dict[str, int]:
    """Return how many variants of each kernel are compiled."""
    kernels = {
        name: kernel
        for module in MODULES
        for name, kernel in vars(module).items()
        if isinstance(kernel, JITFunction) and name.endswith("_kernel")
    }
    return {
        name: sum(len(caches[0]) for caches in kernel.device_caches.values())
        for name, kernel in kernels.items()
    }


def expansion(*outputs: int, dtype: torch.dtype = TYPE) -> LoRABWeights:
    """Three adapters in layers with the given numbers of outputs."""
    pair = torch.empty(RANK, 16, dtype=dtype)
    return LoRABWeights(
        [
            Projection(nn.Linear(1, out), [(pair, torch.empty(out, RANK, dtype=dtype))] * 3)
            for out in outputs
        ],
        dtype,
    )


def product(tokens: int, out: int, lora: LoRABWeights) -> tuple[Tensor, Tensor]:
    output = torch.empty(tokens, out + lora.total_rank, dtype=lora.b.dtype)
    return output[:, :out], output[:, out:]


def numbers(*shape: int) -> Tensor:
    return torch.zeros(shape, dtype=torch.int32)


def step(
    tokens: int, dtype: torch.dtype = TYPE, size: int = SIZE
) -> tuple[PagedBatch, PagedKVCache]:
    """Decoding tokens, and one prefill chunk."""
    config: Any = SimpleNamespace(
        num_key_value_heads=SHARED, num_attention_heads=HEADS, head_dim=size, num_hidden_layers=1
    )
    cache = PagedKVCache(config, num_blocks=2, dtype=dtype, device=torch.device("cpu"))
    batch = PagedBatch(
        input_ids=numbers(tokens).long(),
        adapter_ids=numbers(tokens),
        rows=numbers(tokens),
        positions=numbers(tokens),
        block_tables=numbers(4, 2048),
        num_decode_tokens=tokens,
        max_kv_len=32 * BLOCK_SIZE,
        prefill_tiles=numbers(1, 4),
        tile_tokens=attention.prefill_tile_tokens(HEADS // SHARED),
    )
    return batch, cache


def loads(kernel: Any) -> list[str]:
    """Return the widths of a kernel's loads from global memory, in bits per thread."""
    return re.findall(r"ld\.global\S*?\.((?:v\d\.)?b\d+)", kernel.asm["ptx"])


@pytest.mark.parametrize("tokens", [16, 64, 2048])
def test_adapters_are_loaded_in_wide_vectors(compiled: dict[str, Any], tokens: int) -> None:
    """Scalar loads took twice as long. The compiler must know that the factors' addresses are aligned."""
    adapters = numbers(tokens)
    lora = expansion(INNER, INNER)
    activation.silu_and_mul(*product(tokens, 2 * INNER, lora), lora, adapters)
    lora = expansion(HIDDEN)
    x = torch.empty(tokens, HIDDEN, dtype=TYPE)
    residual.add_residual(x, *product(tokens, HIDDEN, lora), lora, adapters)
    lora = expansion(HEADS * SIZE, SHARED * SIZE, SHARED * SIZE)
    out = (HEADS + 2 * SHARED) * SIZE
    batch, cache = step(tokens)
    angles = torch.empty(64, SIZE // 2)
    rope.rope_and_cache(*product(tokens, out, lora), lora, batch, angles, angles, cache, 0)
    for name in ("_silu_and_mul_kernel", "_add_residual_kernel", "_rope_and_cache_kernel"):
        assert loads(compiled[name]).count("b16") == 0, name


def test_loads_of_keys_are_pipelined(compiled: dict[str, Any]) -> None:
    """Loads run several iterations ahead; otherwise each iteration waits for memory."""
    batch, cache = step(64)
    queries = torch.empty(64, HEADS, SIZE, dtype=TYPE)
    attention.paged_attention(queries, batch, cache, 0, 1.0, 4096)
    # The last kernel compiled is the one for prefill; it needs two iterations of keys and of values.
    turn = attention.PREFILL_CONFIG[0] * SIZE * TYPE.itemsize * 2
    assert compiled["_attention_kernel"].metadata.shared >= 2 * turn
    compiled.clear()
    batch = PagedBatch(**{**vars(batch), "prefill_tiles": None})
    attention.paged_attention(queries, batch, cache, 0, 1.0, 4096)
    turn = attention.DECODE_CONFIG[0] * SIZE * TYPE.itemsize * 2
    assert compiled["_attention_kernel"].metadata.shared >= 3 * turn


def test_what_the_kernel_before_does_not_write_is_loaded_before_waiting_for_it(
    compiled: dict[str, Any],
) -> None:
    x = torch.empty(64, HIDDEN, dtype=TYPE)
    norm.rms_norm(x, x[0], 1e-5)
    batch, cache = step(64)
    batch = PagedBatch(**{**vars(batch), "prefill_tiles": None})
    queries = torch.empty(64, HEADS, SIZE, dtype=TYPE)
    attention.paged_attention(queries, batch, cache, 0, 1.0, None)
    early = {
        "_rms_norm_kernel": 2,  # the weight, in two vectors
        "_attention_kernel": 3,  # row, position and blocks
        "_merge_splits_kernel": 1,  # the position
    }
    for name, number in early.items():
        ptx = compiled[name].asm["ptx"]
        before, after = ptx.split("griddepcontrol.wait")
        assert len(re.findall(r"ld\.global", before)) == number, name
        assert "st.global" not in before
        assert "ret;" not in before
        assert re.search(r"ld\.global|cp\.async", after), name


def test_splits_are_loaded_before_they_are_merged(compiled: dict[str, Any]) -> None:
    """Otherwise a program waits for memory several times."""
    batch, cache = step(64)
    queries = torch.empty(64, HEADS, SIZE, dtype=TYPE)
    attention.paged_attention(queries, batch, cache, 0, 1.0, None)
    ptx = compiled["_merge_splits_kernel"].asm["ptx"]
    assert ptx.rindex("ld.global") < ptx.index("ex2.approx")


def test_the_other_kernels_compile(compiled: dict[str, Any]) -> None:
    x = torch.empty(16, HIDDEN, dtype=TYPE)
    norm.rms_norm(x, x[0], 1e-5)
    linear.small_batch_linear(x, torch.empty(6720, HIDDEN, dtype=TYPE))
    scores, ones = torch.empty(16, 32000, dtype=TYPE), torch.ones(16)
    sampling.sample(scores, ones, ones.long(), ones.long(), 64)
    batch, cache = step(16)
    keys = torch.empty(16, SHARED, SIZE, dtype=TYPE)
    kv_cache.reshape_and_cache(keys, keys, batch, cache, 0)
    assert set(compiled) == {
        "_rms_norm_kernel",
        "_linear_kernel",
        "_sort_keys_kernel",
        "_sample_kernel",
        "_reshape_and_cache_kernel",
    }


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.bfloat16, 128), (torch.float32, 256)], ids=["usual", "largest"]
)
def test_attention_fits_the_shared_memory_of_smaller_gpus(
    compiled: dict[str, Any],
    dtype: torch.dtype,
    size: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An H100 has more than twice as much. What does not fit could not be launched. Gemma's heads are of 256."""
    driver.set_active(RTX4090())
    monkeypatch.setattr(attention, "launch_options", lambda _: FUSED_MULTIPLY_ADD | {"PDL": False})
    batch, cache = step(16, dtype, size)
    queries = torch.empty(16, HEADS, size, dtype=dtype)
    for part in ({"num_decode_tokens": 0}, {"prefill_tiles": None}):
        compiled.clear()
        only = PagedBatch(**{**vars(batch), **part})
        attention.paged_attention(queries, only, cache, 0, 1.0, None)
        assert 0 < compiled["_attention_kernel"].metadata.shared <= RTX4090.shared


def test_adapters_fit_the_shared_memory_of_smaller_gpus(
    compiled: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In float32, which takes twice as much; of these kernels, the one that takes most."""
    driver.set_active(RTX4090())
    monkeypatch.setattr(activation, "launch_options", lambda _: FUSED_MULTIPLY_ADD | {"PDL": False})
    lora = expansion(INNER, INNER, dtype=torch.float32)
    activation.silu_and_mul(*product(64, 2 * INNER, lora), lora, numbers(64))
    assert 0 < compiled["_silu_and_mul_kernel"].metadata.shared <= RTX4090.shared


def test_whatever_is_launched_was_compiled_before(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """While the weights are loaded, `compile_kernels` compiles all variants that the engine then launches."""
    driver.set_active(H100())
    monkeypatch.setattr(common, "_capability", lambda _: (9, 0))
    config = MistralConfig(
        vocab_size=128,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=2048,
        sliding_window=None,
    )
    auto: Any = AutoModelForCausalLM
    base = auto.from_config(config, dtype=TYPE)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = LoraConfig(r=16, target_modules=targets, task_type="CAUSAL_LM")
    models: Any = {}
    for name in ("actor", "critic"):
        models[name] = get_peft_model(
            copy.deepcopy(base), lora, adapter_name=name, autocast_adapter_dtype=False
        )
        models[name].save_pretrained(tmp_path)
    folders = {name: tmp_path / name for name in models}
    sizes: Any = {"max_model_len": 2048, "max_num_seqs": 40}
    runner = meta_runner(config, folders, TYPE, **sizes)
    assert runner
    with ThreadPoolExecutor(2) as pool:
        compile_kernels(runner, pool)
    compiled = variants()
    assert min(compiled[name] for name in compiled if name != "_reshape_and_cache_kernel") > 0

    # The engine's own steps, on tensors that have memory. A launch here only looks up the variant.
    monkeypatch.setattr(runner_setup, "ops_for", lambda _: kernels)
    for module in MODULES:
        if hasattr(module, "launch_options"):
            monkeypatch.setattr(module, "launch_options", lambda _: PDL_OPTIONS)
        monkeypatch.setattr(
            module, "launch", lambda kernel, grid, *a, **o: kernel.warmup(*a, grid=grid, **o)
        )
    options = runner_setup.RunnerOptions(**sizes, paged=True, capture=None)
    real: Any = runner_setup.build_runner(models, options).runner
    for shape in real.shapes_to_capture(1024):
        real.dummy_run(shape)
    assert variants() == compiled
