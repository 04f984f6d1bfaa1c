"""Computes steps over rows of a cache, each as long as the context: on a CPU that costs nothing."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from worker.engine.batching import sampler
from worker.engine.batching.model_runner import Drawn
from worker.engine.batching.row_batch import lay_out
from worker.engine.batching.scheduler import Plan
from worker.engine.batching.sequence import Sequence
from worker.engine.kv.row_cache import KVCache
from worker.engine.kv.row_manager import Rows
from worker.engine.models.llama import Forward
from worker.engine.threads import Sharing


@dataclass(frozen=True)
class Computed:
    """A step that is done."""

    drawn: Drawn

    @property
    def drawing(self) -> list[Sequence]:
        return self.drawn.sequences

    def wait(self) -> Drawn:
        return self.drawn


class RowsRunner:
    """Computes a step while it is launched."""

    ahead = False

    def __init__(
        self, compute: Forward, cache: KVCache, memory: Rows, sharing: Sharing, *, vocabulary: int
    ) -> None:
        """
        Args:
            compute: the model.
            cache: keys and values.
            memory: who has which of its rows.
            sharing: chooses the threads of a step.
            vocabulary: number of tokens.
        """
        self.compute = compute
        self.cache = cache
        self.memory = memory
        self._sharing = sharing
        self._vocabulary = vocabulary

    @property
    def tokens_that_fit(self) -> int:
        return self.cache.rows * self.cache.context

    def launch(self, plan: Plan) -> Computed:
        drawing, logits = self.forward(plan)
        if not drawing:
            return Computed(Drawn([], [], []))
        rows = sampler.Rows.of(
            [s.generation.request.sampling for s in drawing for _ in range(1 + len(s.draft))],
            [len(s.tokens) + i for s in drawing for i in range(1 + len(s.draft))],
            self._vocabulary,
            logits.device,
        )
        tokens, sound = sampler.sample(logits, rows)
        return Computed(Drawn(drawing, tokens.tolist(), sound.tolist()))

    def score(self, plan: Plan) -> Tensor:
        return self.forward(plan)[1]

    def forward(self, plan: Plan) -> tuple[list[Sequence], Tensor]:
        """Compute the plan's tokens.

        Returns:
            the sequences for which a token can be drawn now, and their scores: a row for the next
            token, and one more after each of the draft's: (rows, vocabulary).
        """
        self._prepare()
        step = lay_out(plan, self.cache, self.memory.common)
        self._sharing.share(len(step.adapters))
        logits = self.compute(step.ids, step.adapters, step.layout, step.keep)
        return step.drawing, logits

    def _prepare(self) -> None:
        """Bring the cache into the state that the plan counts on, however the step goes."""
        for row in self.memory.take_damaged():  # a NaN under a mask is still a NaN
            self.cache.clear(row)
        for place in self.memory.take_copies():
            self.cache.copy(place)

    def forget(self, sequence: Sequence) -> None:
        self.cache.clear(sequence.row, sequence.cached)
