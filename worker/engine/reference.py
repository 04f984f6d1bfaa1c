"""The model card's program as an engine: one sequence at a time, `generate` with the role's adapter.

The yardstick for every other engine's correctness and speed, and the one that serves
adapters which nothing faster can.
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
from worker.engine.batching.sampler import LEAST_TEMPERATURE
from worker.engine.interface import (
    Completion,
    EngineError,
    FinishReason,
    Generation,
    Request,
)
from worker.engine.tokenization.detokenizer import Detokenizer
from worker.engine.tokenization.encoder import Encoder
from worker.engine.tokenization.stop_tokens import settle

log = logging.getLogger(__name__)


class _EveryToken(StoppingCriteria):
    """Looks at each new token: streams its text, and stops on cancel and deadline."""

    def __init__(self, generation: Generation, detokenizer: Detokenizer) -> None:
        self._generation = generation
        self._detokenizer = detokenizer
        self.first_token_at: float | None = None
        self.stopped: FinishReason | None = None

    def __call__(
        self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **_: Any
    ) -> torch.BoolTensor:
        del scores
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
        if delta := self._detokenizer.push(int(input_ids[0, -1])):
            self._generation.emit(delta)
        if self._generation.cancelled:
            self.stopped = FinishReason.CANCELLED
        elif time.monotonic() >= self._generation.request.deadline:
            self.stopped = FinishReason.DEADLINE
        return torch.tensor([self.stopped is not None], device=input_ids.device)  # type: ignore[return-value]  # torch types its factories as Tensor


class ReferenceEngine:
    """Serves requests one after another on a thread of its own."""

    name = "reference"
    slots = 1

    def __init__(
        self, models: Mapping[str, PeftModel], tokenizer: PreTrainedTokenizerBase, *, context: int
    ) -> None:
        """Start the engine.

        Args:
            models: by the roles' names, each with an adapter of that name loaded.
            tokenizer: the base's.
            context: tokens of prompt and output together, at most the model's own limit.
        """
        self.context = context
        self._models = dict(models)
        first, *others = models.values()
        self._ends = settle(first, tokenizer)
        for model in others:  # all have the base's
            model.generation_config = first.generation_config
        self._tokenizer = tokenizer
        self._encode = Encoder(tokenizer, context)
        self._waiting: queue.SimpleQueue[tuple[Generation, list[int], int] | None] = (
            queue.SimpleQueue()
        )
        self._closed = threading.Event()
        self._current: Generation | None = None
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request) -> Generation:
        ids, limit = self._encode(request)
        generation = Generation(request)
        self._waiting.put((generation, ids, limit))
        return generation

    def close(self) -> None:
        self._closed.set()
        if self._current is not None:
            self._current.cancel()
        self._waiting.put(None)
        self._thread.join()

    def score(self, ids: list[int]) -> dict[str, Tensor]:
        """Score tokens with each role's model; as the batching engine's."""
        return {name: probe.score(model, name, ids) for name, model in self._models.items()}

    def _serve(self) -> None:
        while (item := self._waiting.get()) is not None:
            generation, ids, limit = item
            self._current = generation
            if self._closed.is_set():
                generation.end(EngineError("the engine was closed"))
                continue
            try:
                generation.end(self._generate(generation, ids, limit))
            except Exception as error:  # whatever it is, only this request fails
                log.exception("a request failed")
                generation.end(EngineError(f"{type(error).__name__}: {error}"))

    @torch.inference_mode()
    def _generate(self, generation: Generation, ids: list[int], limit: int) -> Completion:
        sampling = generation.request.sampling
        detokenizer = Detokenizer(self._tokenizer)
        watch = _EveryToken(generation, detokenizer)
        if generation.cancelled or time.monotonic() >= generation.request.deadline:
            # It waited too long: not a single step.
            watch.stopped = (
                FinishReason.CANCELLED if generation.cancelled else FinishReason.DEADLINE
            )
        else:
            role = generation.request.role.value
            model = self._models[role]
            model.set_adapter(role)
            torch.manual_seed(sampling.seed)
            prompt = torch.tensor([ids], device=model.device)
            drawing: dict[str, Any] = {"do_sample": False, "temperature": None}
            drawing |= {"top_k": None, "top_p": None}
            if sampling.temperature >= LEAST_TEMPERATURE:
                drawing = {
                    "do_sample": True,
                    "temperature": sampling.temperature,
                    "top_k": sampling.top_k,
                    "top_p": sampling.top_p,
                }
            model.generate(  # type: ignore[no-untyped-call]  # peft has no types there
                input_ids=prompt,
                # The card passes none, which means the same and warns.
                attention_mask=torch.ones_like(prompt),
                # The card's max_length=length + 1024; a limit in the base's own generation
                # config would override that one.
                max_new_tokens=limit,
                use_cache=True,
                num_return_sequences=1,
                pad_token_id=self._tokenizer.eos_token_id,
                stopping_criteria=[watch],
                **drawing,
            )
        text, rest = detokenizer.finish()
        if rest:
            generation.emit(rest)
        return Completion(
            text=text,
            deltas=detokenizer.deltas,
            prompt_tokens=len(ids),
            output_tokens=len(detokenizer.ids),
            finish_reason=self._reason(detokenizer.ids, watch.stopped),
            max_output_tokens=limit,
            first_token_at=watch.first_token_at,
        )

    def _reason(self, ids: list[int], stopped: FinishReason | None) -> FinishReason:
        if ids and ids[-1] in self._ends:
            return FinishReason.STOP
        return stopped or FinishReason.LENGTH
