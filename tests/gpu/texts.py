"""The demo's texts do not depend on how they are computed: alone, batched, in chunks, preempted, by PEFT."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoTokenizer

from demo import questions
from jobs import pipeline
from jobs.pipeline import DEFAULT_SYSTEM, Role, Sampling, stage_seed
from tests.gpu import engines
from tests.gpu.report import Report, free
from worker.bench.models import Model
from worker.engine.batching.engine import BatchingEngine
from worker.engine.batching.sequence import Sequence as Sequence_
from worker.engine.interface import (
    Completion,
    Engine,
    EngineError,
    FinishReason,
    Generation,
    Request,
)
from worker.engine.reference import ReferenceEngine

CHECKPOINT = Path(__file__).parents[2] / "demo" / "checkpoint"
CONTEXT = 512
#: Capacity of the KV cache where sequences are preempted, in tokens: of a few sequences, not of 32.
FEW = 2 * CONTEXT
#: Small prompt chunks: every prompt takes several.
CHUNK = 16
#: Tokens that each token attends to, where the base has a window as Mistral-7B v0.1 does: no multiple of a block.
WINDOW = 45
#: Maximum seconds until a variant has all of its texts.
PATIENCE = 60.0


@dataclass(frozen=True)
class Amount:
    """Sizes of the checks."""

    questions: int
    #: Maximum number of new tokens of a stage.
    limit: int
    #: Seconds for the texts of `generate`: as many as it generates in them, one at a time.
    reference: float
    slots: int = 32


#: What is compared of a text.
Outcome = tuple[str, int, FinishReason]


class Checked:
    """Compares the texts of one dtype, computed in several ways."""

    def __init__(
        self,
        report: Report,
        amount: Amount,
        dtype: torch.dtype,
        device: torch.device,
        *,
        sliding_window: int | None = None,
    ) -> None:
        self._sliding_window = sliding_window
        self._report = report
        self._amount = amount
        self._dtype = dtype
        self._device = device
        self._name = str(dtype).removeprefix("torch.")
        self._tokenizer: Any = AutoTokenizer.from_pretrained(CHECKPOINT / "base")
        self._loaded: dict[str, PeftModel] = {}
        #: The requests of the first run. The others get the same, whatever they answer.
        self._requests: list[Request] = []
        self._expected: list[Outcome] = []

    def run(self) -> None:
        """Compare all variants with 32 at once."""
        with closing(self._engine()) as engine:
            self._report.failed |= self._device.type == "cuda" and not engine.config.cuda_graphs
            self._ask(engine)
            order = list(range(len(self._requests)))
            random.Random(1).shuffle(order)
            self._compare("once more in another order", engine, order)
        # One at a time is slow. Where rounding differs anyway, some texts are enough.
        exact = self._dtype is torch.float32
        some = range(0, len(self._requests), 1 if exact else 3)
        self._variant("alone", lambda: self._engine(max_num_seqs=1), some)
        self._variant(f"in chunks of {CHUNK}", lambda: self._engine(max_num_batched_tokens=CHUNK))
        self._variant("without graphs", lambda: self._engine(graphs=False))
        if self._device.type == "cuda":
            self._variant("with evictions", lambda: self._engine(tokens=FEW))
        else:  # there are drafts only over rows
            self._variant("without drafts", lambda: self._engine(speculation=False))
        self._reference(self._amount.reference / (1 if exact else 3))

    def run_briefly(self) -> None:
        """Compare with steps without graphs, and with PEFT."""
        with closing(self._engine()) as engine:
            self._ask(engine)
        self._variant("without graphs", lambda: self._engine(graphs=False))
        self._reference(self._amount.reference)

    def cancel(self) -> None:
        """Cancel some sequences halfway: they end within a step, and no other text changes."""
        with closing(self._engine()) as engine:
            if not self._requests:
                self._ask(engine)
            # At a high temperature over the whole vocabulary, a text hardly ever stops.
            endless = Sampling(temperature=5.0, top_k=0, max_output_tokens=CONTEXT)
            steps: list[int] = []
            cancelled: list[Generation] = []
            neighbours = {}
            for i in range(min(len(self._requests), self._amount.slots - 4)):
                neighbours[i] = engine.submit(self._requests[i])
                if i % 7 == 0 and len(cancelled) < 4:
                    sampling = replace(endless, seed=i)
                    cancelled.append(_cancel_itself(engine, sampling, steps))
            ended = [generation.result(PATIENCE).finish_reason for generation in cancelled]
            outcomes = _outcomes(neighbours)
        count = ended.count(FinishReason.CANCELLED)
        equal = sum(outcome == self._expected[i] for i, outcome in outcomes.items())
        passed = bool(count) and max(steps, default=0) <= 1 and equal == len(outcomes)
        self._report.failed |= not passed
        self._report.say(
            check="cancel",
            dtype=self._name,
            cancelled=count,
            of=len(cancelled),
            steps_after=max(steps, default=None),
            neighbours=len(outcomes),
            equal=equal,
        )

    def _models(self) -> dict[str, PeftModel]:
        """Return a copy of the models, which are loaded once, for an engine that takes it over."""
        free()
        if not self._loaded:
            self._loaded = Model.of(CHECKPOINT).load(self._dtype, self._device)
            for model in self._loaded.values():
                model.config.sliding_window = self._sliding_window
        return copy.deepcopy(self._loaded)

    def _engine(self, **options: Any) -> BatchingEngine:
        options = {
            "max_model_len": CONTEXT,
            "max_num_seqs": self._amount.slots,
            **options,
        }
        return engines.make(self._models(), self._tokenizer, **options)

    def _ask(self, engine: Engine) -> None:
        """Take all questions through the three stages, greedy and sampled."""
        rng = random.Random(0)
        jobs = []
        for number in range(self._amount.questions):
            question = questions.ask(rng, questions.problem(rng))
            if number % 8 == 7:
                question, _ = questions.outside(rng)
            sampled = Sampling(top_p=0.9 if number % 2 else 1.0, seed=number)
            jobs += [(question, Sampling(temperature=0)), (question, sampled)]
        outputs: list[list[str]] = [[] for _ in jobs]
        for stage in pipeline.stages():
            generations = []
            for (question, sampling), texts in zip(jobs, outputs, strict=True):
                seed = stage_seed(sampling.seed, stage.index)
                limited = replace(sampling, max_output_tokens=self._amount.limit, seed=seed)
                prompt = pipeline.prompt(stage, DEFAULT_SYSTEM, question, texts)
                self._requests.append(Request(stage.role, prompt, limited))
                generations.append(engine.submit(self._requests[-1]))
            for generation, texts in zip(generations, outputs, strict=True):
                completion = generation.result(PATIENCE)
                self._expected.append(_outcome_of(completion))
                texts.append(completion.text)

    def _variant(
        self, variant: str, make: Callable[[], BatchingEngine], indices: Sequence[int] | None = None
    ) -> None:
        with closing(make()) as engine:
            self._compare(
                variant, engine, range(len(self._requests)) if indices is None else indices
            )

    def _compare(self, variant: str, engine: BatchingEngine, indices: Sequence[int]) -> None:
        computed, start = engine.num_computed_tokens, time.monotonic()
        generations = {i: engine.submit(self._requests[i]) for i in indices}
        outcomes = _outcomes(generations)
        # Preempted sequences are recomputed.
        computed = engine.num_computed_tokens - computed
        self._report_differences(
            variant, outcomes, computed=computed, seconds=round(time.monotonic() - start, 2)
        )

    def _reference(self, seconds: float) -> None:
        """Compare greedy texts with those of PEFT's `generate`, all roles in turn."""
        greedy = [i for i, r in enumerate(self._requests) if r.sampling.temperature == 0]
        order = random.Random(2).sample(greedy, len(greedy))
        outcomes: dict[int, Outcome | str] = {}
        reference = ReferenceEngine(self._models(), self._tokenizer, max_model_len=CONTEXT)
        end = time.monotonic() + seconds
        with closing(reference):
            while order and (not outcomes or time.monotonic() < end):
                i = order.pop()
                outcomes |= _outcomes({i: reference.submit(self._requests[i])})
        self._report_differences("PEFT's generate", outcomes)

    def _report_differences(
        self, variant: str, outcomes: dict[int, Outcome | str], **extra: Any
    ) -> None:
        """Report how many texts are equal; in float32, all must be."""
        for mode in ("greedy", "sampled"):
            greedy = mode == "greedy"
            indices = [
                i for i in outcomes if (self._requests[i].sampling.temperature == 0) == greedy
            ]
            if not indices:
                continue
            different = [i for i in indices if outcomes[i] != self._expected[i]]
            summary: dict[str, Any] = {
                "texts": len(indices),
                "equal": len(indices) - len(different),
            }
            if errors := [outcomes[i] for i in different if isinstance(outcomes[i], str)]:
                summary |= {"errors": len(errors), "error": errors[0]}
            elif different:
                summary["first"] = {
                    "found": outcomes[different[0]],
                    "expected": self._expected[different[0]],
                }
            self._say(variant, drawn=mode, **summary, **extra)
            self._report.failed |= bool(different) and self._dtype is torch.float32

    def _say(self, variant: str, **fields: Any) -> None:
        self._report.say(
            check="texts",
            dtype=self._name,
            window=self._sliding_window,
            variant=variant,
            against=f"{self._amount.slots} at once",
            **fields,
        )


def _cancel_itself(engine: BatchingEngine, sampling: Sampling, steps: list[int]) -> Generation:
    """Submit a request that is cancelled at its first delta; note after how many steps the engine ends it.

    The end is observed on the engine's thread, so that no step is missed.
    """
    loop = engine._loop
    finish = loop._finish
    at: list[int] = []
    generation = engine.submit(Request(Role.ACTOR, "gravity", sampling))
    emit = generation.emit

    def emitted(delta: str) -> None:
        emit(delta)
        if not at:
            generation.cancel()
            at.append(
                engine.num_steps
            )  # after the cancel: a step that started before does not count

    def finished(sequence: Sequence_, outcome: FinishReason | EngineError) -> None:
        if sequence.generation is generation and outcome is FinishReason.CANCELLED:
            steps.append(engine.num_steps - at[0] if at else 0)
        finish(sequence, outcome)

    generation.emit = emitted  # type: ignore[method-assign]  # observes the engine
    loop._finish = finished  # type: ignore[method-assign]  # (the same)
    return generation


def _outcomes(generations: Mapping[int, Generation]) -> dict[int, Outcome | str]:
    """Wait for all texts; return what is compared of each, or its error."""
    end = time.monotonic() + PATIENCE
    outcomes: dict[int, Outcome | str] = {}
    for i, generation in generations.items():
        try:
            outcomes[i] = _outcome_of(generation.result(max(0, end - time.monotonic())))
        except (EngineError, TimeoutError) as error:
            outcomes[i] = f"{type(error).__name__}: {error}"
    return outcomes


def _outcome_of(completion: Completion) -> Outcome:
    return completion.text, completion.output_tokens, completion.finish_reason
