"""Compiles the kernels of captured steps on threads, while the weights are loaded.

Which variants of a kernel a step needs depends on sizes and dtypes alone. A model of the same sizes on the
meta device, which has no memory, computes the same steps, and its kernels are compiled and not launched
(`worker.engine.cuda.kernels.common.launch`).
"""

from __future__ import annotations

import copy
import logging
import os
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from threading import Thread
from types import TracebackType
from typing import Any, Self

import peft
import torch
from peft import PeftConfig
from transformers import AutoModelForCausalLM, PreTrainedConfig

from worker.engine.batching.paged_model_runner import PagedModelRunner
from worker.engine.batching.runner_setup import (
    MAX_NUM_BATCHED_TOKENS,
    MAX_NUM_SEQS,
    RunnerOptions,
    build_runner,
)
from worker.engine.kv.paged_cache import BLOCK_SIZE
from worker.engine.models.paged_llama import PagedLlama

log = logging.getLogger(__name__)

#: Maximum number of threads that compile. Others hash and load the weights meanwhile.
MAX_THREADS = 4


class KernelCompilation:
    """Compilation of an engine's kernels on threads. A failure is logged: they compile at their first use.

    As a context manager, it waits for all kernels at the end of the ``with`` block, or for those that are being compiled
    if the block failed.
    """

    def __init__(self, runner: PagedModelRunner, device: torch.device) -> None:
        """Start to compile.

        Args:
            runner: as `meta_runner` returns it.
            device: the CUDA device to compile for.
        """
        self._runner = runner
        self._device = device
        self._cancelled = False
        self._pool = ThreadPoolExecutor(min(MAX_THREADS, os.cpu_count() or 1), "compile")
        self._thread = Thread(target=self._run, name="compile", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            self._cancelled = True
            self._pool.shutdown(cancel_futures=True)
        self._thread.join()

    def _run(self) -> None:
        started = time.monotonic()
        try:
            with self._pool, torch.cuda.device(self._device):
                compile_kernels(self._runner, self._pool)
        except Exception:
            if not self._cancelled:
                log.warning("kernels are compiled at their first use", exc_info=True)
        else:
            log.info("compiled kernels in %.1f s", time.monotonic() - started)


def meta_runner(
    config: PreTrainedConfig,
    adapters: Mapping[str, Path],
    dtype: torch.dtype,
    *,
    max_model_len: int,
    max_num_seqs: int | None,
) -> PagedModelRunner | None:
    """Make a runner of a model without memory, of two layers; None if the engine has no kernels for it.

    transformers and PEFT change global state as they build modules, so nothing else may do so meanwhile.

    Args:
        config: the base's.
        adapters: folders of the adapters by name.
        dtype: of the weights.
        max_model_len: maximum number of tokens of a sequence.
        max_num_seqs: maximum number of sequences; as many as an engine has at most if None.

    Raises:
        Exception: whatever they raise where an adapter does not fit the model of two layers.
    """
    config = copy.deepcopy(config)
    # The last layer computes sampled tokens only, another one all of them.
    config.num_hidden_layers = 2
    if layer_types := getattr(config, "layer_types", None):
        config.layer_types = layer_types[:2]
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        base = auto.from_config(config, dtype=dtype).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns again when it loads the adapters
        models: Any = {
            name: peft.get_peft_model(
                copy.deepcopy(base),
                PeftConfig.from_pretrained(str(folder)),
                adapter_name=name,
                autocast_adapter_dtype=False,
                low_cpu_mem_usage=True,
            ).to(dtype)
            for name, folder in adapters.items()
        }
    options = RunnerOptions(
        max_model_len=max_model_len,
        max_num_seqs=max_num_seqs or MAX_NUM_SEQS["cuda"],
        paged=True,
        num_blocks=-(-max_model_len // BLOCK_SIZE) + 1,
        capture=None,
    )
    runner = build_runner(models, options).runner
    is_paged_llama = isinstance(runner, PagedModelRunner) and isinstance(runner.model, PagedLlama)
    return runner if is_paged_llama else None  # type: ignore[return-value]  # checked in the line before


def compile_kernels(runner: PagedModelRunner, pool: Executor) -> None:
    """Compile the kernels of all steps that an engine captures, for the current CUDA device.

    Args:
        runner: as `meta_runner` returns it.
        pool: its threads compile. Triton holds the GIL for a sixth of the time.

    Raises:
        Exception: whatever Triton raises.
    """
    from triton import AsyncCompileMode  # PyTorch for CPUs comes without Triton

    with AsyncCompileMode(pool):
        for shape in runner.shapes_to_capture(MAX_NUM_BATCHED_TOKENS["cuda"]):
            runner.dummy_run(shape)
