"""A model runner over a paged KV cache: the device computes a step while the host schedules the next."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from worker.engine.attention.paged_batch import PagedBatch
from worker.engine.batching import sampler
from worker.engine.batching.batch_shape import BatchShape, shapes_to_capture
from worker.engine.batching.cuda_graphs import Capture, StepOutputs
from worker.engine.batching.host_copies import pinned, to_device
from worker.engine.batching.model_runner import ModelRunnerOutput
from worker.engine.batching.paged_inputs import MAX_TOP_K, PagedInputBuilder, split_inputs
from worker.engine.batching.sampler import SamplingMetadata
from worker.engine.batching.scheduler_output import SchedulerOutput
from worker.engine.batching.sequence import PENDING_TOKEN, Sequence
from worker.engine.kv.block_manager import BlockManager
from worker.engine.kv.paged_cache import PagedKVCache

log = logging.getLogger(__name__)

#: Seconds between log lines while CUDA graphs are captured, and after which no other capture starts.
PROGRESS_INTERVAL, MAX_CAPTURE_SECONDS = 5.0, 60.0
#: Maximum number of candidates of all rows that are sampled together after a step: each takes some 100 bytes, for which
#: no memory is reserved.
MAX_CANDIDATES = 2**21


@dataclass
class LaunchedStep:
    """A step on its way to the host."""

    sampled_sequences: list[Sequence]
    #: Which of ``token_ids`` are theirs.
    sample_indices: list[int]
    #: Valid once ``synchronize`` returns; -1 where the logits were not finite.
    token_ids: Tensor
    synchronize: Callable[[], object]

    def get_output(self) -> ModelRunnerOutput:
        """Wait for the device, and return the tokens."""
        self.synchronize()
        samples = self.token_ids.tolist()
        token_ids = [samples[i] for i in self.sample_indices]
        is_finite = [token_id >= 0 for token_id in token_ids]
        return ModelRunnerOutput(self.sampled_sequences, token_ids, is_finite)


class PagedModelRunner:
    """Computes steps over a paged KV cache, as CUDA graphs where they are captured."""

    async_scheduling = True

    def __init__(
        self,
        model: Callable[[PagedBatch, PagedKVCache, Tensor | None], Tensor],
        cache: PagedKVCache,
        kv: BlockManager,
        *,
        vocab_size: int,
        ops: Any,
        tile_tokens: int,
        capture: Capture | None,
    ) -> None:
        """
        Args:
            model: computes a batch's logits, as `worker.engine.models.paged_llama.PagedLlama`.
            cache: keys and values.
            kv: manages the blocks of the cache.
            vocab_size: number of token ids.
            ops: `worker.engine.cuda.kernels` or `worker.engine.cuda.torch_ops`.
            tile_tokens: maximum number of tokens of a prefill tile.
            capture: captures steps as CUDA graphs; all steps are launched kernel by kernel if None.
        """
        self.model = model
        self.kv = kv
        self._cache = cache
        self._device = cache.device
        self._vocab_size = vocab_size
        self._ops = ops
        self._tile_tokens = tile_tokens
        self._capture = capture
        num_rows = len(kv.block_tables)
        self._max_kv_len = kv.block_tables.shape[1] * cache.block_size
        self._inputs = PagedInputBuilder(
            num_rows,
            max_kv_len=self._max_kv_len,
            tile_tokens=tile_tokens,
            vocab_size=vocab_size,
        )
        self._block_tables = torch.zeros(
            kv.block_tables.shape, dtype=torch.int32, device=self._device
        )
        #: The last token of each row; one more row for padding.
        self._last_token_ids = torch.zeros(num_rows + 1, dtype=torch.int64, device=self._device)
        #: Logits of captured steps.
        self._logits = torch.empty(0)
        self._graphs: dict[BatchShape, tuple[Tensor, Callable[[], StepOutputs]]] = {}

    @property
    def kv_cache_tokens(self) -> int:
        return (self._cache.num_blocks - 1) * self._cache.block_size

    @property
    def cuda_graphs(self) -> bool:
        return bool(self._graphs)

    def discard_uncomputed(self, sequence: Sequence) -> None:
        """Do nothing: attention reads no slot beyond a sequence's tokens."""

    # --- CUDA graphs ------------------------------------------------------------------

    def shapes_to_capture(self, max_num_batched_tokens: int) -> list[BatchShape]:
        """Return the shapes that are worth capturing, largest first."""
        return shapes_to_capture(
            num_rows=self._inputs.num_rows,
            max_kv_len=self._max_kv_len,
            tile_tokens=self._tile_tokens,
            max_num_batched_tokens=max_num_batched_tokens,
        )

    def capture_graphs(self, max_num_batched_tokens: int) -> int:
        """Capture steps of the shapes that will come; return how many.

        Args:
            max_num_batched_tokens: maximum number of tokens of a step with prefills.
        """
        if self._capture is None:
            return 0
        started = logged = time.monotonic()
        shapes = self.shapes_to_capture(max_num_batched_tokens)
        # One for all graphs: each would keep its own, half a GB together.
        size = max(shape.num_samples for shape in shapes), self._vocab_size
        self._logits = torch.empty(size, dtype=self._cache.keys[0].dtype, device=self._device)
        out_of_memory = 0
        for number, shape in enumerate(shapes):
            if time.monotonic() - logged > PROGRESS_INTERVAL:
                logged = time.monotonic()
                log.info("captured %d of %d CUDA graphs", len(self._graphs), len(shapes))
            if time.monotonic() - started > MAX_CAPTURE_SECONDS:
                log.warning("captured %d of %d CUDA graphs in time", number, len(shapes))
                break
            try:
                if not self._capture_graph(shape, self._capture):
                    break
            except torch.OutOfMemoryError:
                out_of_memory += 1
        if out_of_memory:
            log.warning(
                "out of memory: %d of %d CUDA graphs were not captured, and their steps are slower; "
                "is another program on the device?",
                out_of_memory,
                len(shapes),
            )
        return len(self._graphs)

    @torch.inference_mode()
    def dummy_run(self, shape: BatchShape) -> None:
        """Compute a step of padding tokens."""
        inputs = torch.from_numpy(self._inputs.padding(shape)).to(self._device)
        self._compute(shape, inputs)

    @torch.inference_mode()
    def _capture_graph(self, shape: BatchShape, capture: Capture) -> bool:
        """Capture one shape; return whether others can be captured, too."""
        inputs = torch.from_numpy(self._inputs.padding(shape)).to(self._device)
        try:
            replay = capture(lambda inputs: self._compute_and_keep(shape, inputs), inputs)
        except torch.OutOfMemoryError:
            raise
        except Exception:
            # The engine works without graphs, slower. A fault of the device shows in the next step.
            log.warning("no more CUDA graphs are captured", exc_info=True)
            self._capture = None
            return False
        self._graphs[shape] = inputs, replay
        return True

    def _compute_and_keep(self, shape: BatchShape, inputs: Tensor) -> StepOutputs:
        """As `_compute`, with the logits in memory that all graphs share."""
        token_ids, logits = self._compute(shape, inputs)
        return token_ids, self._logits[: len(logits)].copy_(logits)

    # --- steps ------------------------------------------------------------------------

    @torch.inference_mode()
    def launch(self, output: SchedulerOutput) -> LaunchedStep:
        """Launch a step. The device computes it after all that were launched before."""
        self._update_block_tables()
        inputs = self._inputs.build(output, self._graphs)
        sampled, indices = inputs.sampled_sequences, inputs.sample_indices
        if inputs.shape in self._graphs:
            graph_inputs, replay = self._graphs[inputs.shape]
            data = pinned(torch.from_numpy(inputs.data), self._device)
            graph_inputs.copy_(data, non_blocking=True)
            token_ids, logits = replay()
        else:
            token_ids, logits = self._compute(inputs.shape, self._to_device(inputs.data))
        after_step = self._inputs.sampled_after_step
        if special := [i for i, s in enumerate(sampled) if after_step[s.row]]:
            to_sample = [(sampled[i], indices[i]) for i in special]
            token_ids = self._sample_after_step(token_ids, logits, to_sample)
        if self._device.type != "cuda":
            return LaunchedStep(sampled, indices, token_ids.clone(), lambda: None)
        host = torch.empty(token_ids.shape, dtype=token_ids.dtype, pin_memory=True)
        host.copy_(token_ids, non_blocking=True)
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch has no types there
        event.record()
        return LaunchedStep(sampled, indices, host, event.synchronize)

    @torch.inference_mode()
    def compute_logits(self, output: SchedulerOutput) -> Tensor:
        self._update_block_tables()
        inputs = self._inputs.build(output)
        _, logits = self._compute(inputs.shape, self._to_device(inputs.data))
        return logits[torch.tensor(inputs.sample_indices, device=logits.device)]

    def _update_block_tables(self) -> None:
        indices, blocks = self.kv.table_updates()
        if len(indices):
            updates = self._to_device(np.concatenate([indices, blocks]))
            flat_tables = self._block_tables.view(-1)
            flat_tables.index_copy_(0, updates[: len(indices)], updates[len(indices) :].int())
            # Not before: if there is no memory for the copy, the next step needs the same updates.
            self.kv.on_tables_updated()

    def _to_device(self, array: np.ndarray) -> Tensor:
        return to_device(torch.from_numpy(array), self._device)

    def _compute(self, shape: BatchShape, inputs: Tensor) -> StepOutputs:
        """Compute and sample. The host must not read a value here, so that a graph can capture it.

        Args:
            shape: of the step.
            inputs: as `PagedInputBuilder` writes it, on the device.

        Returns:
            token ids, (samples,) int64, -1 where the logits were not finite; and the logits, (samples,
            vocabulary).
        """
        step = split_inputs(inputs, shape)
        last_token_ids = self._last_token_ids.index_select(0, step.rows)
        batch = PagedBatch(
            input_ids=torch.where(step.token_ids == PENDING_TOKEN, last_token_ids, step.token_ids),
            adapter_ids=step.adapter_ids,
            rows=step.rows,
            positions=step.positions,
            block_tables=self._block_tables,
            num_decode_tokens=shape.num_decode_tokens,
            max_kv_len=shape.max_kv_len,
            prefill_tiles=step.tiles if shape.num_tiles else None,
            tile_tokens=self._tile_tokens,
        )
        logits_indices = step.logits_indices if shape.num_tiles else None
        logits = self.model(batch, self._cache, logits_indices)
        token_ids, is_finite = self._ops.sample(
            logits,
            step.temperatures,
            step.top_k,
            step.noise_seeds,
            min(MAX_TOP_K, self._vocab_size),
        )
        self._last_token_ids.index_copy_(0, step.sample_rows, token_ids)
        return torch.where(is_finite, token_ids, -1), logits

    def _sample_after_step(
        self, token_ids: Tensor, logits: Tensor, to_sample: Seq[tuple[Sequence, int]]
    ) -> Tensor:
        """Sample rows with a larger top-k or with top-p, and replace their tokens.

        Args:
            token_ids: (samples,) int64.
            logits: (samples, vocabulary).
            to_sample: sequences, and the indices of their samples.
        """
        vocab_size = self._vocab_size

        def top_k(sequence: Sequence) -> int:
            return sequence.generation.request.sampling.top_k or vocab_size

        to_sample = sorted(to_sample, key=lambda item: top_k(item[0]), reverse=True)
        size = max(1, MAX_CANDIDATES // min(top_k(to_sample[0][0]), vocab_size))
        for start in range(0, len(to_sample), size):
            sequences, indices = zip(*to_sample[start : start + size], strict=True)
            samplings = [s.generation.request.sampling for s in sequences]
            positions = [len(s.output_token_ids) for s in sequences]
            metadata = SamplingMetadata.build(samplings, positions, vocab_size, self._device)
            rows = self._to_device(np.array([indices, [s.row for s in sequences]]))
            sampled, is_finite = sampler.sample(logits[rows[0]], metadata)
            self._last_token_ids.index_copy_(0, rows[1], sampled)
            token_ids = token_ids.index_copy(0, rows[0], torch.where(is_finite, sampled, -1))
        return token_ids
