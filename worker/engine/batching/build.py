"""Chooses how steps are computed: over rows of a cache, or over blocks on a CUDA device."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable
from collections.abc import Sequence as Several
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from peft import PeftModel

from worker.engine.batching.cuda_graphs import Record, recorder_for
from worker.engine.batching.model_runner import ModelRunner
from worker.engine.batching.paged_model_runner import PagedRunner
from worker.engine.batching.row_model_runner import RowsRunner
from worker.engine.cuda import requirements, torch_ops
from worker.engine.cuda.projections import obstacle
from worker.engine.kv import gpu_memory
from worker.engine.kv.block_manager import Blocks
from worker.engine.kv.paged_cache import BLOCK_SIZE, BlockCache
from worker.engine.kv.row_cache import KVCache
from worker.engine.kv.row_manager import Rows
from worker.engine.lora.layers import Form, MergedLinear, StackedLinear, form_for, take_apart
from worker.engine.models.llama import Layers, forward_of, is_llama, projections
from worker.engine.models.paged_llama import FusedLlama
from worker.engine.models.paged_transformers import PagedTransformers
from worker.engine.threads import Sharing

__all__ = ["Built", "Recorder", "build", "recorder_for"]

log = logging.getLogger(__name__)

#: Says how steps are recorded on a device; None if not at all.
Recorder = Callable[[torch.device], Record | None]

#: The most tokens of one step that has prompts: enough to fill the processor, few enough that it does
#: not hold the decoding sequences up for long. By the device's type.
CHUNK = {"cpu": 512, "cuda": 1024}
#: Sequences that decode together, unless it is said otherwise: on CUDA at the most, and so many tokens of
#: memory for each of them.
SLOTS = {"cpu": 16, "cuda": 256}
TOKENS_EACH = 1024


@dataclass(frozen=True)
class Built:
    """How an engine computes."""

    runner: ModelRunner
    slots: int
    chunk: int
    sharing: Sharing
    device: torch.device


def build(
    models: dict[str, PeftModel],
    *,
    context: int,
    slots: int | None,
    chunk: int | None,
    form: Form | None,
    paged: bool | None,
    blocks: int | None,
    record: Recorder | None,
    keys: Several[Hashable],
) -> Built:
    """Make models ready to compute steps; they are used up. Arguments as for `BatchingEngine`."""
    model = next(iter(models.values()))
    device, dtype = model.device, model.dtype
    config: Any = model.config
    chunk = chunk or CHUNK.get(device.type, CHUNK["cuda"])
    vocabulary = int(config.vocab_size)
    del model
    if not (device.type != "cpu" if paged is None else paged):
        form = form or form_for(models)
        slots = slots or SLOTS["cpu"]
        # However few run at once, each role's last prompt stays where the next one finds it.
        rows = max(slots, len(models))
        adapters = len(models)
        compute = forward_of(models, form)
        cache = KVCache(config, rows=rows, context=context, dtype=dtype, device=device)
        sharing = Sharing(small=form is MergedLinear)
        held = Rows(rows, context=context, adapters=adapters)
        runner = RowsRunner(compute, cache, held, sharing, vocabulary=vocabulary)
        return Built(runner, slots, chunk, sharing, device)
    ops = ops_for(device)
    count = len(models)
    base, factors = take_apart(models)
    heads = int(config.num_attention_heads)
    fused = is_llama(base, factors) and config.hidden_act == "silu" and _joinable(base)
    forward: Any
    if fused:
        forward = FusedLlama(base, factors, count, ops, context)
    else:
        forward = PagedTransformers(base, Layers(base, factors, count, StackedLinear), ops)
    del base, factors
    if blocks is None:
        if device.type == "cuda":
            working = gpu_memory.working(
                forward, ops, config, dtype, device, chunk, slots or SLOTS["cuda"]
            )
            if isinstance(forward, FusedLlama):  # recorded steps have memory of their own for it
                working += forward.written_out
            blocks = gpu_memory.blocks_that_fit(
                config, dtype, device, block_size=BLOCK_SIZE, context=context, working=working
            )
        else:
            blocks = (slots or SLOTS["cpu"]) * -(-context // BLOCK_SIZE) + 1
    if slots is None:
        fit = (blocks - 1) * BLOCK_SIZE // TOKENS_EACH
        slots = max(1, min(SLOTS["cuda"], fit))
    rows = max(slots, count)
    paged_cache = BlockCache(config, blocks=blocks, dtype=dtype, device=device)
    pool = Blocks(blocks, BLOCK_SIZE, rows=rows, context=context, adapters=keys)
    recorded = record(device) if record and fused else None
    paged_runner = PagedRunner(
        forward,
        paged_cache,
        pool,
        vocabulary=vocabulary,
        ops=ops,
        work_tokens=ops.work_tokens(heads // paged_cache.heads),
        record=recorded,
    )
    if recorded:
        began = time.monotonic()
        done = paged_runner.capture(chunk)
        log.info("recorded %d shapes of steps in %.1f s", done, time.monotonic() - began)
    return Built(paged_runner, slots, chunk, Sharing(small=False), device)


def _joinable(base: Any) -> bool:
    """Whether our own kernels take all projections of a base of Llama's build; the log says why not."""
    for path, layer in projections(base).items():
        if said := obstacle(layer):
            log.warning(
                "the base is computed by transformers' modules, which is slower: %s cannot be "
                "computed by the engine's kernels: %s",
                path,
                said,
            )
            return False
    return True


def ops_for(device: torch.device) -> ModuleType:
    """Return the operations of a step on a device: Triton's kernels on CUDA, plain PyTorch elsewhere.

    Raises:
        worker.engine.cuda.requirements.DeviceError: kernels cannot be compiled.
    """
    if device.type == "cuda":
        requirements.check(device)
        from worker.engine.cuda import kernels  # a CPU's PyTorch comes without Triton

        return kernels
    return torch_ops
