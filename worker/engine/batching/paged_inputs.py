"""Writes a scheduled step as the input of a paged model: one array, which is copied to the device at once.

Each kind of number has the dtype and the place in memory that the device's kernels want, so that they read the
array as it is.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from worker.engine.batching import sampler
from worker.engine.batching.batch_shape import BatchShape, smallest_fit
from worker.engine.batching.scheduler_output import SchedulerOutput
from worker.engine.batching.sequence import Sequence

#: Largest top-k that is sampled within a step; other rows are sampled after it.
MAX_TOP_K = 64
#: Numbers of a prefill tile: see `worker.engine.attention.paged_batch.PagedBatch`.
TILE_COLUMNS = 4
#: Bytes to which parts of the input are aligned, so that a kernel compiled for one of them serves all.
ALIGNMENT = 16


@dataclass(frozen=True)
class StepInputs:
    """The parts of a step's input: arrays on the host, or tensors on a device, that share its memory."""

    #: Of tokens. An id may be `worker.engine.batching.sequence.PENDING_TOKEN`.
    token_ids: Any
    adapter_ids: Any
    rows: Any
    positions: Any
    #: (tiles, `TILE_COLUMNS`).
    tiles: Any
    #: Of samples.
    logits_indices: Any
    sample_rows: Any
    noise_seeds: Any
    top_k: Any
    temperatures: Any


@dataclass(frozen=True)
class PagedInputs:
    """The input of a step, on the host."""

    shape: BatchShape
    #: (bytes,) uint8; `split_inputs` gives its parts.
    data: np.ndarray
    #: The sequences that are sampled.
    sampled_sequences: list[Sequence]
    #: Which of the step's samples are theirs.
    sample_indices: list[int]


class PagedInputBuilder:
    """Builds inputs. It keeps what does not change of a sequence while it has its row."""

    def __init__(
        self, num_rows: int, *, max_kv_len: int, tile_tokens: int, vocab_size: int
    ) -> None:
        """
        Args:
            num_rows: rows of the block tables.
            max_kv_len: maximum length of a sequence.
            tile_tokens: maximum number of tokens of a prefill tile.
            vocab_size: number of token ids.
        """
        self.num_rows = num_rows
        self._max_kv_len = max_kv_len
        self._tile_tokens = tile_tokens
        self._vocab_size = vocab_size
        self._sequences: list[Sequence | None] = [None] * num_rows
        self._seeds = np.zeros(num_rows, dtype=np.int64)
        self._temperatures = np.zeros(num_rows)
        self._top_k = np.zeros(num_rows, dtype=np.int64)
        self._adapter_ids = np.zeros(num_rows, dtype=np.int64)
        #: Whether a row's tokens are sampled after the step: with a larger top-k, or with top-p.
        self.sampled_after_step = np.zeros(num_rows, dtype=bool)

    def padding(self, shape: BatchShape) -> np.ndarray:
        """Return the input of a step that has padding tokens only: (bytes,) uint8."""
        data = np.zeros(_sections(shape)[-1][-1], dtype=np.uint8)
        step = split_inputs(data, shape)
        step.adapter_ids[:] = step.positions[:] = -1
        step.sample_rows[:] = self.num_rows
        step.top_k[:] = 1
        return data

    def build(self, output: SchedulerOutput, captured: Iterable[BatchShape] = ()) -> PagedInputs:
        """Write a step's input.

        Args:
            output: the step.
            captured: shapes of CUDA graphs; the step is padded to the smallest that it fits into.
        """
        decodes, prefills = output.decodes, output.prefills
        for sequence in output.sequences:
            if self._sequences[sequence.row] is not sequence:
                self._set_row(sequence)
        tile_tokens, num_decodes = self._tile_tokens, len(decodes)
        shape = self._shape(output, captured)
        data = self.padding(shape)
        step = split_inputs(data, shape)
        if num_decodes:
            self._write_decodes(step, decodes)
        first, tile = num_decodes, 0
        sample_indices = list(range(num_decodes))
        logits_indices = list(range(num_decodes))
        for chunk in prefills:
            sequence, length = chunk.sequence, chunk.end - chunk.start
            tokens = slice(first, first + length)
            step.token_ids[tokens] = sequence.slice(chunk.start, chunk.end)
            step.adapter_ids[tokens] = sequence.adapter_id
            step.rows[tokens] = sequence.row
            step.positions[tokens] = np.arange(chunk.start, chunk.end)
            # In a padded shape, the first tokens of prefills may be computed as decode tokens.
            num_as_decodes = min(max(shape.num_decode_tokens - first, 0), length)
            for start in range(num_as_decodes, length, tile_tokens):
                size = min(tile_tokens, length - start)
                step.tiles[tile] = first + start, size, sequence.row, chunk.start + start
                tile += 1
            first += length
            if chunk.is_last:
                sample_indices.append(shape.num_decode_tokens + len(sample_indices) - num_decodes)
                logits_indices.append(first - 1)
        sampled = [*decodes, *(chunk.sequence for chunk in prefills if chunk.is_last)]
        if sampled:
            step.logits_indices[sample_indices] = logits_indices
            self._write_samples(step, sample_indices, sampled)
        return PagedInputs(shape, data, sampled, sample_indices)

    def _shape(self, output: SchedulerOutput, captured: Iterable[BatchShape]) -> BatchShape:
        """Return the shape of a step's input, padding included."""
        decodes, prefills = output.decodes, output.prefills
        shape = BatchShape(
            num_decode_tokens=len(decodes),
            num_tokens=len(decodes) + output.num_prefill_tokens,
            num_tiles=sum(-(-(c.end - c.start) // self._tile_tokens) for c in prefills),
            num_samples=len(decodes) + sum(chunk.is_last for chunk in prefills),
            max_kv_len=max((s.num_computed_tokens for s in decodes), default=0) + 1,
        )
        # Without a graph, the length does not matter, and one value compiles fewer kernels.
        return smallest_fit(captured, shape) or replace(shape, max_kv_len=self._max_kv_len)

    def _write_decodes(self, step: StepInputs, decodes: Seq[Sequence]) -> None:
        """Write the last tokens of decoding sequences into the beginning of the step."""
        count = len(decodes)
        rows = np.fromiter((s.row for s in decodes), np.int64, count)
        last_token_ids = (s.output_token_ids[-1] for s in decodes)
        step.token_ids[:count] = np.fromiter(last_token_ids, np.int64, count)
        step.adapter_ids[:count] = self._adapter_ids[rows]
        step.rows[:count] = rows
        positions = (s.num_computed_tokens for s in decodes)
        step.positions[:count] = np.fromiter(positions, np.int64, count)

    def _set_row(self, sequence: Sequence) -> None:
        """Keep what does not change of a sequence."""
        row, sampling = sequence.row, sequence.generation.request.sampling
        self._sequences[row] = sequence
        self._adapter_ids[row] = sequence.adapter_id
        self._seeds[row] = sampling.seed
        greedy = sampling.temperature < sampler.MIN_TEMPERATURE
        self._temperatures[row] = 0.0 if greedy else sampling.temperature
        self._top_k[row] = 1 if greedy else min(sampling.top_k or MAX_TOP_K, MAX_TOP_K)
        self.sampled_after_step[row] = not greedy and (
            not 0 < sampling.top_k <= MAX_TOP_K or sampling.top_p < 1
        )

    def _write_samples(
        self, step: StepInputs, indices: list[int], sequences: Seq[Sequence]
    ) -> None:
        """Write rows and sampling parameters of sequences into the samples of some indices."""
        count = len(sequences)
        rows = np.fromiter((s.row for s in sequences), np.int64, count)
        positions = np.fromiter((len(s.output_token_ids) for s in sequences), np.int64, count)
        seeds = torch.from_numpy(self._seeds[rows])
        step.sample_rows[indices] = rows
        step.noise_seeds[indices] = sampler.noise_seeds(seeds, torch.from_numpy(positions)).numpy()
        step.top_k[indices] = np.minimum(self._top_k[rows], self._vocab_size)
        step.temperatures[indices] = self._temperatures[rows]


def split_inputs(data: Any, shape: BatchShape) -> StepInputs:
    """Return views of the parts of a step's input.

    Args:
        data: (bytes,) uint8, an array or a tensor.
        shape: of the step.
    """
    dtypes: Any = torch if isinstance(data, torch.Tensor) else np
    parts = {
        name: data[start:end].view(getattr(dtypes, dtype))
        for name, dtype, start, end, _ in _sections(shape)
    }
    return StepInputs(**parts | {"tiles": parts["tiles"].reshape(-1, TILE_COLUMNS)})


@functools.lru_cache(256)
def _sections(shape: BatchShape) -> list[tuple[str, str, int, int, int]]:
    """Return name, dtype, first byte, end, and aligned end of each part of a step's input, in order."""
    num_tokens, num_samples = shape.num_tokens, shape.num_samples
    sections = []
    start = 0
    for name, dtype, count in (
        ("token_ids", "int64", num_tokens),
        ("adapter_ids", "int32", num_tokens),
        ("rows", "int32", num_tokens),
        ("positions", "int32", num_tokens),
        ("tiles", "int32", shape.num_tiles * TILE_COLUMNS),
        ("logits_indices", "int64", num_samples),
        ("sample_rows", "int64", num_samples),
        ("noise_seeds", "int64", num_samples),
        ("top_k", "int64", num_samples),
        ("temperatures", "float32", num_samples),
    ):
        end = start + count * np.dtype(dtype).itemsize
        aligned_end = -(-end // ALIGNMENT) * ALIGNMENT
        sections.append((name, dtype, start, end, aligned_end))
        start = aligned_end
    return sections
