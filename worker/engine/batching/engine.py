"""The batching engine: requests of all roles are decoded together."""

from __future__ import annotations

from collections.abc import Callable, Container
from collections.abc import Sequence as Seq

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from jobs.pipeline import Role, Sampling
from worker.engine.batching.loop import EngineLoop
from worker.engine.batching.runner_setup import RunnerOptions, RunnerSetup, build_runner
from worker.engine.batching.scheduler_output import PrefillChunk, SchedulerOutput
from worker.engine.batching.sequence import Sequence
from worker.engine.batching.step_watch import MAX_STEP_SECONDS
from worker.engine.interface import EngineConfig, EngineStats, Generation, Request
from worker.engine.kv.block_manager import BlockManager
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
        setup: RunnerSetup,
        tokenizer: PreTrainedTokenizerBase,
        *,
        adapter_names: Seq[str],
        stop_token_ids: Container[int],
        max_model_len: int,
        speculation: bool = True,
        on_engine_dead: Callable[[], object] = lambda: None,
        max_step_seconds: float | None = None,
    ) -> None:
        """Start with a model runner; `from_models` builds one.

        Args:
            setup: the model runner.
            tokenizer: encodes prompts and decodes texts.
            adapter_names: names of the roles, in the order of the adapter ids.
            stop_token_ids: the tokens that end a text.
            max_model_len: maximum number of tokens of prompt and output together.
            speculation: whether to draft tokens where it pays. Texts are the same.
            on_engine_dead: called when the engine can serve no more: after an error that a device keeps for its
                process, before the requests fail; after ``max_step_seconds`` of one step; after an error of the
                engine's own thread.
            max_step_seconds: how long a step may take; by default 120 seconds on CUDA, without limit elsewhere.
        """
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

    @classmethod
    def from_models(
        cls,
        models: dict[str, PeftModel],
        tokenizer: PreTrainedTokenizerBase,
        options: RunnerOptions,
        *,
        speculation: bool = True,
        on_engine_dead: Callable[[], object] = lambda: None,
        max_step_seconds: float | None = None,
    ) -> BatchingEngine:
        """Take models over, build their model runner with its KV cache, and start.

        Args:
            models: by role name; their bases share the tensors, and no adapter has
                `worker.lora.adapter.batching_unsupported_reasons`. The dict is emptied, and the models cannot be used for
                anything else any more.
            tokenizer: the base's.
            options: of the model runner.
            speculation, on_engine_dead, max_step_seconds: as for `BatchingEngine`.

        Raises:
            worker.engine.interface.EngineError: an adapter is more than factors beside linear layers.
            worker.engine.cuda.requirements.DeviceError: the device has no memory for one context, or its
                kernels cannot be compiled.
        """
        # Both before the models are taken apart.
        adapter_names = list(models)
        stop_token_ids = resolve_stop_tokens(next(iter(models.values())), tokenizer)
        return cls(
            build_runner(models, options),
            tokenizer,
            adapter_names=adapter_names,
            stop_token_ids=stop_token_ids,
            max_model_len=options.max_model_len,
            speculation=speculation,
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
