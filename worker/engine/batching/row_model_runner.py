"""A model runner over a KV cache of rows, each as long as the context: for CPUs."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from worker.engine.batching import sampler
from worker.engine.batching.model_runner import ModelRunnerOutput
from worker.engine.batching.row_batch import RowBatch, prepare_row_batch
from worker.engine.batching.sampler import SamplingMetadata
from worker.engine.batching.scheduler_output import SchedulerOutput
from worker.engine.batching.sequence import Sequence
from worker.engine.intra_op_threads import IntraOpThreads
from worker.engine.kv.row_cache import RowKVCache
from worker.engine.kv.row_manager import RowManager
from worker.engine.models.model import RowModel


@dataclass(frozen=True)
class CompletedStep:
    """A step that is computed already."""

    output: ModelRunnerOutput

    @property
    def sampled_sequences(self) -> list[Sequence]:
        return self.output.sequences

    def get_output(self) -> ModelRunnerOutput:
        return self.output


class RowModelRunner:
    """Computes each step while it is launched."""

    async_scheduling = False
    cuda_graphs = False

    def __init__(
        self,
        model: RowModel,
        cache: RowKVCache,
        kv: RowManager,
        threads: IntraOpThreads,
        *,
        vocab_size: int,
    ) -> None:
        """
        Args:
            model: computes logits.
            cache: keys and values.
            kv: manages the rows of the cache.
            threads: chooses the threads of each step.
            vocab_size: number of token ids.
        """
        self.model = model
        self.cache = cache
        self.kv = kv
        self._threads = threads
        self._vocab_size = vocab_size

    @property
    def kv_cache_tokens(self) -> int:
        return self.cache.num_rows * self.cache.max_model_len

    def launch(self, output: SchedulerOutput) -> CompletedStep:
        batch, logits = self._execute(output)
        sampled = batch.sampled_sequences
        if not sampled:
            return CompletedStep(ModelRunnerOutput([], [], []))
        metadata = SamplingMetadata.build(
            [
                s.generation.request.sampling
                for s in sampled
                for _ in range(1 + len(s.draft_token_ids))
            ],
            [
                len(s.output_token_ids) + i
                for s in sampled
                for i in range(1 + len(s.draft_token_ids))
            ],
            self._vocab_size,
            logits.device,
        )
        token_ids, is_finite = sampler.sample(logits, metadata)
        return CompletedStep(ModelRunnerOutput(sampled, token_ids.tolist(), is_finite.tolist()))

    def compute_logits(self, output: SchedulerOutput) -> Tensor:
        return self._execute(output)[1]

    def _execute(self, output: SchedulerOutput) -> tuple[RowBatch, Tensor]:
        """Compute a step.

        Returns:
            the batch, and its logits: one row for each of ``logits_indices``, (rows, vocabulary).
        """
        self._prepare_cache()
        batch = prepare_row_batch(output, self.cache, self.kv.common_prefix_len)
        with self._threads.computing(len(batch.adapter_ids)):
            logits = self.model(
                batch.input_ids, batch.adapter_ids, batch.attention, batch.logits_indices
            )
        return batch, logits

    def _prepare_cache(self) -> None:
        """Zero and copy rows as the manager wants; this must happen even if the step fails."""
        for row in self.kv.take_rows_to_zero():  # a masked NaN is still a NaN
            self.cache.zero(row)
        for allocation in self.kv.take_copies():
            self.cache.copy_prefix(allocation)

    def discard_uncomputed(self, sequence: Sequence) -> None:
        self.cache.zero(sequence.row, sequence.num_computed_tokens)
