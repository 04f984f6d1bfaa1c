"""Builds the model runner that suits a model and its device: over rows, or over pages."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from peft import PeftModel

from worker.engine.batching.cuda_graphs import Capture, cuda_graph_capture
from worker.engine.batching.model_runner import ModelRunner
from worker.engine.batching.paged_model_runner import PagedModelRunner
from worker.engine.batching.row_model_runner import RowModelRunner
from worker.engine.cuda import requirements, torch_ops
from worker.engine.cuda.projections import unsupported_reason
from worker.engine.intra_op_threads import IntraOpThreads
from worker.engine.kv import gpu_memory
from worker.engine.kv.block_manager import BlockManager
from worker.engine.kv.paged_cache import BLOCK_SIZE, PagedKVCache
from worker.engine.kv.row_cache import RowKVCache
from worker.engine.kv.row_manager import RowManager
from worker.engine.kv.shape import kv_head_shape
from worker.engine.lora.factors import extract_factors
from worker.engine.lora.linear import LoRALayers, LoRALinear, choose_lora_linear
from worker.engine.lora.merged_linear import MergedLoRALinear
from worker.engine.lora.stacked_linear import StackedLoRALinear
from worker.engine.models.llama_common import is_llama, projections
from worker.engine.models.model import build_row_model
from worker.engine.models.paged_llama import PagedLlama
from worker.engine.models.transformers import PagedTransformersModel
from worker.engine.threads import on_device

log = logging.getLogger(__name__)

#: Returns what captures CUDA graphs on a device; None if nothing does.
CaptureFactory = Callable[[torch.device], Capture | None]

#: Default of the maximum number of tokens of a step with prefills, by device type: enough to use the
#: processor, few enough not to delay the decoding sequences for long.
MAX_NUM_BATCHED_TOKENS = {"cpu": 512, "cuda": 1024}
#: Default of the maximum number of sequences. On CUDA it is an upper bound: each sequence gets at least
#: `KV_TOKENS_PER_SEQ` tokens of the KV cache.
MAX_NUM_SEQS = {"cpu": 16, "cuda": 256}
KV_TOKENS_PER_SEQ = 1024
#: The KV cache of a CUDA device holds all sequences with their longest context, so many times. What is beyond the first
#: time holds prefixes of prompts alone. A small model on a large device would have millions of blocks, which the host
#: keeps lists of.
MAX_KV_COPIES = 2


@dataclass(frozen=True)
class RunnerSetup:
    """A model runner, and the numbers that suit it."""

    runner: ModelRunner
    max_num_seqs: int
    max_num_batched_tokens: int
    threads: IntraOpThreads
    device: torch.device


@dataclass(frozen=True, kw_only=True)
class RunnerOptions:
    """How to build a model runner. What is None is chosen to suit the model and its device."""

    #: Maximum number of tokens of prompt and output, at most the model's own limit.
    max_model_len: int
    #: Maximum number of requests that are decoded together.
    max_num_seqs: int | None = None
    #: Maximum number of tokens of a step with prefills.
    max_num_batched_tokens: int | None = None
    #: Implementation of LoRA layers over a KV cache of rows.
    lora_linear: LoRALinear | None = None
    #: Whether the KV cache is paged, and a step is launched before the step before is read. False is for CPUs, where it
    #: is the default.
    paged: bool | None = None
    #: Blocks of the paged KV cache; by default as many as fit the device's memory.
    num_blocks: int | None = None
    #: Returns what captures CUDA graphs on a device. If it is None, steps are launched kernel by kernel.
    capture: CaptureFactory | None = cuda_graph_capture
    #: Identify each adapter's weights, as a digest or a path does, in the models' order. Adapters with equal keys share
    #: prefixes; by default none do.
    adapter_keys: Seq[Hashable] | None = None


def build_runner(models: dict[str, PeftModel], options: RunnerOptions) -> RunnerSetup:
    """Build a model runner of models, which cannot be used any more.

    Models and errors are those of `worker.engine.batching.engine.BatchingEngine.from_models`.
    """
    device = next(iter(models.values())).device
    if options.paged or (options.paged is None and device.type != "cpu"):
        with on_device(device):
            return _build_paged(models, options)
    return _build_rows(models, options)


def _build_rows(models: dict[str, PeftModel], options: RunnerOptions) -> RunnerSetup:
    device, dtype, config = _properties(models)
    num_adapters, max_model_len = len(models), options.max_model_len
    max_num_seqs = options.max_num_seqs or MAX_NUM_SEQS["cpu"]
    lora_linear = options.lora_linear or choose_lora_linear(models)
    # At least one row for each adapter: its last prompt stays in the prefix cache.
    num_rows = max(max_num_seqs, num_adapters)
    model = build_row_model(models, lora_linear)
    cache = RowKVCache(config, num_rows=num_rows, max_model_len=max_model_len, dtype=dtype)
    threads = IntraOpThreads(small_model=lora_linear is MergedLoRALinear)
    kv = RowManager(num_rows, max_model_len=max_model_len, num_adapters=num_adapters)
    runner = RowModelRunner(model, cache, kv, threads, vocab_size=int(config.vocab_size))
    return RunnerSetup(
        runner, max_num_seqs, _max_num_batched_tokens(options, device), threads, device
    )


def _build_paged(models: dict[str, PeftModel], options: RunnerOptions) -> RunnerSetup:
    device, dtype, config = _properties(models)
    if device.type == "cuda":
        requirements.check(device)
    ops = ops_for(device)
    adapter_keys = options.adapter_keys or list(models)
    max_num_batched_tokens = _max_num_batched_tokens(options, device)
    model = _build_paged_model(models, ops, options.max_model_len)
    capture = None
    if options.capture is not None and isinstance(model, PagedLlama):
        capture = options.capture(device)
    num_kv_heads, _ = kv_head_shape(config)
    tile_tokens = ops.prefill_tile_tokens(int(config.num_attention_heads) // num_kv_heads)
    num_blocks = options.num_blocks
    if num_blocks is None and device.type == "cuda":
        most_seqs = options.max_num_seqs or MAX_NUM_SEQS["cuda"]
        activation_bytes = gpu_memory.profile_run(
            model,
            ops,
            config,
            dtype,
            device,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=most_seqs,
            tile_tokens=tile_tokens,
        )
        num_blocks = gpu_memory.num_blocks_that_fit(
            config,
            dtype,
            device,
            block_size=BLOCK_SIZE,
            max_model_len=options.max_model_len,
            max_num_tokens=MAX_KV_COPIES
            * most_seqs
            * max(options.max_model_len, KV_TOKENS_PER_SEQ),
            activation_bytes=activation_bytes,
            cuda_graphs=capture is not None,
        )
    elif num_blocks is None:
        most_seqs = options.max_num_seqs or MAX_NUM_SEQS["cpu"]
        num_blocks = most_seqs * -(-options.max_model_len // BLOCK_SIZE) + 1
    max_num_seqs = options.max_num_seqs
    if max_num_seqs is None:
        fitting = (num_blocks - 1) * BLOCK_SIZE // KV_TOKENS_PER_SEQ
        max_num_seqs = max(1, min(MAX_NUM_SEQS["cuda"], fitting))
    cache = PagedKVCache(config, num_blocks=num_blocks, dtype=dtype, device=device)
    kv = BlockManager(
        num_blocks,
        BLOCK_SIZE,
        num_rows=max(max_num_seqs, len(adapter_keys)),
        max_model_len=options.max_model_len,
        adapter_keys=adapter_keys,
    )
    runner = PagedModelRunner(
        model,
        cache,
        kv,
        vocab_size=int(config.vocab_size),
        ops=ops,
        tile_tokens=tile_tokens,
        capture=capture,
    )
    if capture is not None:
        started = time.monotonic()
        count = runner.capture_graphs(max_num_batched_tokens)
        log.info("captured %d CUDA graphs in %.1f s", count, time.monotonic() - started)
    threads = IntraOpThreads(small_model=False)
    return RunnerSetup(runner, max_num_seqs, max_num_batched_tokens, threads, device)


def _max_num_batched_tokens(options: RunnerOptions, device: torch.device) -> int:
    if options.max_num_batched_tokens is not None:
        return options.max_num_batched_tokens
    return MAX_NUM_BATCHED_TOKENS.get(device.type, MAX_NUM_BATCHED_TOKENS["cuda"])


def _build_paged_model(
    models: dict[str, PeftModel], ops: ModuleType, max_model_len: int
) -> PagedLlama | PagedTransformersModel:
    """Build a model over pages: with the engine's own kernels, if they support the base."""
    _, _, config = _properties(models)
    num_adapters = len(models)
    base, factors = extract_factors(models)
    if is_llama(base, factors) and config.hidden_act == "silu" and _kernels_support(base):
        return PagedLlama(base, factors, num_adapters, ops, max_model_len)
    return PagedTransformersModel(
        base, LoRALayers(base, factors, num_adapters, StackedLoRALinear), ops
    )


def _properties(models: dict[str, PeftModel]) -> tuple[torch.device, torch.dtype, Any]:
    model = next(iter(models.values()))
    return model.device, model.dtype, model.config


def _kernels_support(base: Any) -> bool:
    """Return whether the kernels take all projections of a base of Llama's architecture; log if not."""
    for name, layer in projections(base).items():
        if reason := unsupported_reason(layer):
            log.warning(
                "the base is computed by transformers' modules, which is slower: the engine's kernels "
                "do not support %s: %s",
                name,
                reason,
            )
            return False
    return True


def ops_for(device: torch.device) -> ModuleType:
    """Return the operations of a step on a device: Triton's kernels on CUDA, PyTorch's elsewhere.

    On the meta device the kernels are compiled, and not launched.
    """
    if device.type in ("cuda", "meta"):
        from worker.engine.cuda import kernels  # PyTorch for CPUs comes without Triton

        return kernels
    return torch_ops
