"""The reference engine: the model card's program, one sequence at a time with PEFT and `generate`.

Other engines are compared with it, in correctness and in speed, and it serves adapters that they do not
support.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Mapping
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria

from worker.engine import probe
from worker.engine.batching.sampler import MIN_TEMPERATURE
from worker.engine.interface import (
    CUT,
    Completion,
    EngineConfig,
    EngineError,
    EngineStats,
    FinishReason,
    Generation,
    Request,
)
from worker.engine.tokenization.detokenizer import Detokenizer
from worker.engine.tokenization.encoder import Encoder
from worker.engine.tokenization.stop_tokens import resolve_stop_tokens
from worker.engine.tokenization.stopping_detokenizer import StoppingDetokenizer, make_detokenizer

log = logging.getLogger(__name__)


class _StreamAndStop(StoppingCriteria):
    """Streams the text of each new token, and stops at a stop string, on a cancel or at the deadline."""

    def __init__(
        self, generation: Generation, detokenizer: Detokenizer | StoppingDetokenizer
    ) -> None:
        self._generation = generation
        self._detokenizer = detokenizer
        self.first_token_at: float | None = None
        self.stop_reason: FinishReason | None = None

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any
    ) -> torch.BoolTensor:
        del scores
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
        if delta := self._detokenizer.push(int(input_ids[0, -1])):
            self._generation.emit(delta)
        if self._detokenizer.stopped:
            self.stop_reason = FinishReason.STOP_STRING
        elif self._generation.cancelled:
            self.stop_reason = FinishReason.CANCELLED
        elif time.monotonic() >= self._generation.request.deadline:
            self.stop_reason = FinishReason.DEADLINE
        return torch.tensor([self.stop_reason is not None], device=input_ids.device)  # type: ignore[return-value]  # torch types its factories as Tensor


class ReferenceEngine:
    """Serves requests one after another, on a thread of its own."""

    name = "reference"
    max_num_seqs = 1

    def __init__(
        self,
        models: Mapping[str, PeftModel],
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_model_len: int,
    ) -> None:
        """Start the engine.

        Args:
            models: by role name, each with an adapter of that name loaded.
            tokenizer: the base's.
            max_model_len: maximum number of tokens of prompt and output, at most the model's own limit.
        """
        self.max_model_len = max_model_len
        self._models = dict(models)
        first, *others = models.values()
        self._stop_token_ids = resolve_stop_tokens(first, tokenizer)
        for model in others:  # all have the base's
            model.generation_config = first.generation_config
        self._tokenizer = tokenizer
        self._encode = Encoder(tokenizer, max_model_len)
        self._waiting: queue.SimpleQueue[tuple[Generation, list[int], int] | None] = (
            queue.SimpleQueue()
        )
        self._closed = threading.Event()
        self._current: Generation | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def config(self) -> EngineConfig:
        """How the engine computes."""
        return EngineConfig(
            slots=self.max_num_seqs, max_context=self.max_model_len, paged=False, cuda_graphs=False
        )

    def submit(self, request: Request) -> Generation:
        prompt_token_ids, max_output_tokens = self._encode(request)
        generation = Generation(request)
        self._waiting.put((generation, prompt_token_ids, max_output_tokens))
        return generation

    def stats(self) -> EngineStats:
        """Return what the engine does; see `worker.engine.interface.MeasuredEngine`."""
        current = self._current
        is_running = current is not None and not current.finished
        return EngineStats(num_running=int(is_running), num_waiting=self._waiting.qsize())

    def close(self) -> None:
        self._closed.set()
        if self._current is not None:
            self._current.cancel()
        self._waiting.put(None)
        self._thread.join()

    def compute_logits(self, token_ids: list[int]) -> dict[str, Tensor]:
        """Compute logits with each role's model; as `BatchingEngine.compute_logits`."""
        return {
            name: probe.peft_logits(model, name, token_ids) for name, model in self._models.items()
        }

    def _run(self) -> None:
        while (item := self._waiting.get()) is not None:
            generation, prompt_token_ids, max_output_tokens = item
            self._current = generation
            if self._closed.is_set():
                generation.finish(EngineError("the engine was closed"))
                continue
            try:
                generation.finish(self._generate(generation, prompt_token_ids, max_output_tokens))
            except Exception as error:  # noqa: BLE001 (whatever it is, only this request fails)
                generation.context.run(log.exception, "a request failed")
                generation.finish(EngineError.of(error))

    @torch.inference_mode()
    def _generate(
        self, generation: Generation, prompt_token_ids: list[int], max_output_tokens: int
    ) -> Completion:
        sampling = generation.request.sampling
        detokenizer = make_detokenizer(self._tokenizer, sampling.stop)
        criterion = _StreamAndStop(generation, detokenizer)
        if generation.cancelled or time.monotonic() >= generation.request.deadline:
            # It waited too long: compute nothing.
            criterion.stop_reason = (
                FinishReason.CANCELLED if generation.cancelled else FinishReason.DEADLINE
            )
        else:
            role = generation.request.role.value
            model = self._models[role]
            model.set_adapter(role)
            torch.manual_seed(sampling.seed)
            input_ids = torch.tensor([prompt_token_ids], device=model.device)
            options: dict[str, Any] = {"do_sample": False, "temperature": None}
            options |= {"top_k": None, "top_p": None}
            if sampling.temperature >= MIN_TEMPERATURE:
                options = {
                    "do_sample": True,
                    "temperature": sampling.temperature,
                    "top_k": sampling.top_k,
                    "top_p": sampling.top_p,
                }
            model.generate(  # type: ignore[no-untyped-call]  # peft has no types there
                input_ids=input_ids,
                # The card passes none, which means the same and warns.
                attention_mask=torch.ones_like(input_ids),
                # The card's max_length=length + 1024; a limit in the base's own generation
                # config would override that one.
                max_new_tokens=max_output_tokens,
                use_cache=True,
                num_return_sequences=1,
                pad_token_id=self._tokenizer.eos_token_id,
                stopping_criteria=[criterion],
                **options,
            )
        reason = self._finish_reason(detokenizer.token_ids, criterion.stop_reason)
        text, rest = detokenizer.finish(cut=reason in CUT)
        if detokenizer.stopped:
            reason = FinishReason.STOP_STRING
        if rest and reason is not FinishReason.CANCELLED:
            # A cancelled stage may run again; its delta would then be longer.
            generation.emit(rest)
        return Completion(
            text=text,
            deltas=detokenizer.deltas,
            prompt_tokens=len(prompt_token_ids),
            output_tokens=len(detokenizer.token_ids),
            finish_reason=reason,
            max_output_tokens=max_output_tokens,
            first_token_at=criterion.first_token_at,
        )

    def _finish_reason(
        self, token_ids: list[int], stop_reason: FinishReason | None
    ) -> FinishReason:
        if token_ids and token_ids[-1] in self._stop_token_ids:
            return FinishReason.STOP
        return stop_reason or FinishReason.LENGTH
