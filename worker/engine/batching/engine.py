"""The batching engine: requests of all roles are decoded together."""

from __future__ import annotations

from collections.abc import Callable, Container
from collections.abc import Sequence as Seq

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from jobs.pipeline import Role, Sampling
from worker.engine.batching.cuda_graphs import cuda_graph_capture
from worker.engine.batching.loop import EngineLoop
from worker.engine.batching.runner_setup import CaptureFactory, RunnerSetup, build_runner
from worker.engine.batching.scheduler_output import PrefillChunk, SchedulerOutput
from worker.engine.batching.sequence import Sequence
from worker.engine.batching.step_watch import MAX_STEP_SECONDS
from worker.engine.interface import EngineConfig, EngineStats, Generation, Request
from worker.engine.kv.block_manager import BlockManager
from worker.engine.lora.linear import LoRALinear
from worker.engine.speculative.drafter import Drafter
from worker.engine.threads import on_device
from worker.engine.tokenization.detokenizer import Detokenizer
from worker.engine.tokenization.encoder import Encoder
from worker.engine.tokenization.stop_tokens import resolve_stop_tokens
from worker.engine.tokenization.stopping_detokenizer import make_detokenizer


class BatchingEngine:
    """Decodes up to ``max_num_seqs`` requests in every step, on a thread of its own."""

    name = "batching"

    def __init__(
        self,
        models: dict[str, PeftModel],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_model_len: int,
        max_num_seqs: int | None = None,
        max_num_batched_tokens: int | None = None,
        lora_linear: LoRALinear | None = None,
        speculation: bool = True,
        paged: bool | None = None,
        num_blocks: int | None = None,
        capture: CaptureFactory | None = cuda_graph_capture,
        adapter_keys: Seq[str] | None = None,
        on_engine_dead: Callable[[], object] = lambda: None,
        max_step_seconds: float | None = None,
    ) -> None:
        """Take the models over, allocate the KV cache, and start.

        Args:
            models: by role name; their bases share the tensors, and no adapter has
                `worker.lora.adapter.batching_unsupported_reasons`. The dict is emptied, and the models cannot be used for
                anything else any more.
            tokenizer: the base's.
            max_model_len: maximum number of tokens of prompt and output, at most the model's own limit.
            max_num_seqs: maximum number of requests that are decoded together; by default as many as suit
                the device and its memory.
            max_num_batched_tokens: maximum number of tokens of a step with prefills; by default what suits
                the device.
            lora_linear: implementation of LoRA layers over a KV cache of rows; by default what suits the
                model.
            speculation: whether to draft tokens where it pays. Texts are the same.
            paged: whether the KV cache is paged, and a step is launched before the step before is read;
                False is for CPUs, where it is the default.
            num_blocks: blocks of the paged KV cache; by default as many as fit the device's memory.
            capture: returns what captures CUDA graphs on a device; if None, steps are launched kernel by
                kernel.
            adapter_keys: identify each adapter's weights, as a digest or a path does, in the models' order;
                adapters with equal keys share prefixes. By default none do.
            on_engine_dead: called when the engine can serve no more: after an error that a device keeps for its
                process, before the requests fail; after ``max_step_seconds`` of one step; after an error of the
                engine's own thread.
            max_step_seconds: how long a step may take; by default 120 seconds on CUDA, without limit elsewhere.

        Raises:
            worker.engine.interface.EngineError: an adapter is more than factors beside linear layers.
            worker.engine.cuda.requirements.DeviceError: the device has no memory for one context, or its
                kernels cannot be compiled.
        """
        adapter_names = list(models)
        stop_token_ids = resolve_stop_tokens(next(iter(models.values())), tokenizer)
        setup = build_runner(
            models,
            max_model_len=max_model_len,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            lora_linear=lora_linear,
            paged=paged,
            num_blocks=num_blocks,
            capture=capture,
            adapter_keys=adapter_keys or adapter_names,
        )
        self._start(
            setup,
            tokenizer,
            adapter_names=adapter_names,
            stop_token_ids=stop_token_ids,
            max_model_len=max_model_len,
            speculation=speculation,
            on_engine_dead=on_engine_dead,
            max_step_seconds=max_step_seconds,
        )

    @classmethod
    def from_runner(
        cls,
        setup: RunnerSetup,
        tokenizer: PreTrainedTokenizerBase,
        *,
        adapter_names: Seq[str],
        stop_token_ids: Container[int],
        max_model_len: int,
    ) -> BatchingEngine:
        """Start an engine with a model runner that exists already.

        Args:
            setup: the model runner.
            tokenizer: encodes prompts and decodes texts.
            adapter_names: names of the roles, in the order of the adapter ids.
            stop_token_ids: the tokens that end a text.
            max_model_len: maximum number of tokens of prompt and output together.
        """
        engine = cls.__new__(cls)
        engine._start(
            setup,
            tokenizer,
            adapter_names=adapter_names,
            stop_token_ids=stop_token_ids,
            max_model_len=max_model_len,
            speculation=True,
            on_engine_dead=lambda: None,
            max_step_seconds=None,
        )
        return engine

    def _start(
        self,
        setup: RunnerSetup,
        tokenizer: PreTrainedTokenizerBase,
        *,
        adapter_names: Seq[str],
        stop_token_ids: Container[int],
        max_model_len: int,
        speculation: bool,
        on_engine_dead: Callable[[], object],
        max_step_seconds: float | None,
    ) -> None:
        self.max_model_len = max_model_len
        self.max_num_seqs = setup.max_num_seqs
        self._adapter_names = list(adapter_names)
        self._tokenizer = tokenizer
        self._encode = Encoder(tokenizer, max_model_len)
        self._runner = setup.runner
        self._device = setup.device
        drafter: Drafter | None = None
        if speculation and not setup.runner.async_scheduling:
            drafter = Drafter(len(self._adapter_names))
        if max_step_seconds is None and setup.device.type == "cuda":
            max_step_seconds = MAX_STEP_SECONDS
        self._loop = EngineLoop(
            setup,
            tokenizer,
            drafter=drafter,
            stop_token_ids=stop_token_ids,
            on_engine_dead=on_engine_dead,
            max_step_seconds=max_step_seconds,
        )

    @property
    def kv_cache_tokens(self) -> int:
        """Capacity of the KV cache, in tokens of all requests together."""
        return self._runner.kv_cache_tokens

    @property
    def config(self) -> EngineConfig:
        """How the engine computes."""
        return EngineConfig(
            slots=self.max_num_seqs,
            max_context=self.max_model_len,
            paged=isinstance(self._runner.kv, BlockManager),
            cuda_graphs=self._runner.cuda_graphs,
        )

    @property
    def num_steps(self) -> int:
        """Number of steps so far."""
        return self._loop.executor.num_steps

    @property
    def num_computed_tokens(self) -> int:
        """Number of tokens that steps have computed so far, without rejected drafts."""
        return self._loop.executor.num_computed_tokens

    def stats(self) -> EngineStats:
        """Return what the engine does; see `worker.engine.interface.MeasuredEngine`."""
        scheduler, executor, kv = self._loop.scheduler, self._loop.executor, self._runner.kv
        used = total = None
        if self._device.type == "cuda":
            free, total = torch.cuda.mem_get_info(self._device)
            used = total - free
        return EngineStats(
            num_running=len(scheduler.running),
            num_waiting=self._loop.num_waiting,
            num_steps=executor.num_steps,
            step_seconds=self._loop.step_seconds,
            num_computed_tokens=executor.num_computed_tokens,
            num_preemptions=scheduler.num_preemptions,
            num_kv_blocks=kv.num_blocks,
            num_used_kv_blocks=kv.num_blocks - kv.num_free_blocks,
            gpu_memory_used=used,
            gpu_memory=total,
        )

    def submit(self, request: Request) -> Generation:
        prompt_token_ids, max_output_tokens = self._encode(request)
        generation = Generation(request)
        adapter_id = self._adapter_names.index(request.role.value)
        detokenizer = make_detokenizer(self._tokenizer, request.sampling.stop)
        self._loop.submit(
            Sequence(generation, prompt_token_ids, max_output_tokens, adapter_id, detokenizer)
        )
        return generation

    def close(self) -> None:
        self._loop.close()

    def compute_logits(self, token_ids: list[int]) -> dict[str, Tensor]:
        """Compute logits with every adapter, in the same steps. Call it before any request.

        Args:
            token_ids: all but the last are computed as a prompt, then the last one.

        Returns:
            by role name, the logits after the last two tokens: (2, vocabulary), float32 on the CPU.
        """
        kv = self._runner.kv
        logits: dict[str, Tensor] = {}
        waiting = []
        for adapter_id, adapter_name in enumerate(self._adapter_names):
            generation = Generation(Request(Role(adapter_name), "", Sampling()))
            detokenizer = Detokenizer(self._tokenizer)
            waiting.append(Sequence(generation, token_ids[:-1], 2, adapter_id, detokenizer))
        with on_device(self._device):
            while waiting:
                sequences = []
                while waiting and kv.allocate(waiting[0]):
                    sequences.append(waiting.pop(0))
                chunks = [PrefillChunk(s, s.num_computed_tokens, len(s)) for s in sequences]
                prefill_logits = self._runner.compute_logits(SchedulerOutput([], chunks))
                for sequence in sequences:
                    sequence.num_computed_tokens = len(sequence.prompt_token_ids)
                    sequence.output_token_ids = [token_ids[-1]]
                    kv.append_slots(sequence, len(sequence))
                decode_logits = self._runner.compute_logits(SchedulerOutput(sequences, []))
                for sequence, *rows in zip(sequences, prefill_logits, decode_logits, strict=True):
                    adapter_name = self._adapter_names[sequence.adapter_id]
                    logits[adapter_name] = torch.stack(rows).float().cpu()
                    kv.free(sequence, invalid_kv=True)
        return logits
