"""Writes a scheduled step as the input of a paged model: one array of int64."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from worker.engine.batching import sampler
from worker.engine.batching.batch_shape import (
    SAMPLE_COLUMNS,
    TILE_COLUMNS,
    TOKEN_COLUMNS,
    BatchShape,
    smallest_fit,
)
from worker.engine.batching.scheduler_output import SchedulerOutput
from worker.engine.batching.sequence import Sequence

#: Largest top-k that is sampled within a step; other rows are sampled after it.
MAX_TOP_K = 64


@dataclass(frozen=True)
class PagedInputs:
    """The input of a step, on the host."""

    shape: BatchShape
    #: (shape.input_size,) int64; `split_inputs` gives its parts.
    table: np.ndarray
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
        """Return the input of a step that has padding tokens only."""
        table = np.zeros(shape.input_size, dtype=np.int64)
        tokens, _, samples = split_inputs(table, shape)
        tokens[:, 1] = tokens[:, 3] = -1
        samples[:, 1] = self.num_rows
        samples[:, 3] = 1
        return table

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
        last_chunks = [chunk.sequence for chunk in prefills if chunk.is_last]
        shape = BatchShape(
            num_decode_tokens=num_decodes,
            num_tokens=num_decodes + output.num_prefill_tokens,
            num_tiles=sum(-(-(c.end - c.start) // tile_tokens) for c in prefills),
            num_samples=num_decodes + len(last_chunks),
            max_kv_len=max((s.num_computed_tokens for s in decodes), default=0) + 1,
        )
        # Without a graph, the length does not matter, and one value compiles fewer kernels.
        shape = smallest_fit(captured, shape) or BatchShape(
            shape.num_decode_tokens,
            shape.num_tokens,
            shape.num_tiles,
            shape.num_samples,
            self._max_kv_len,
        )
        table = self.padding(shape)
        tokens, tiles, samples = split_inputs(table, shape)
        if num_decodes:
            rows = np.fromiter((s.row for s in decodes), np.int64, num_decodes)
            last_token_ids = (s.output_token_ids[-1] for s in decodes)
            tokens[:num_decodes, 0] = np.fromiter(last_token_ids, np.int64, num_decodes)
            tokens[:num_decodes, 1] = self._adapter_ids[rows]
            tokens[:num_decodes, 2] = rows
            positions = (s.num_computed_tokens for s in decodes)
            tokens[:num_decodes, 3] = np.fromiter(positions, np.int64, num_decodes)
        first, tile = num_decodes, 0
        sample_indices = list(range(num_decodes))
        logits_indices = list(range(num_decodes))
        for chunk in prefills:
            sequence, length = chunk.sequence, chunk.end - chunk.start
            chunk_tokens = tokens[first : first + length]
            chunk_tokens[:, 0] = sequence.slice(chunk.start, chunk.end)
            chunk_tokens[:, 1] = sequence.adapter_id
            chunk_tokens[:, 2] = sequence.row
            chunk_tokens[:, 3] = np.arange(chunk.start, chunk.end)
            # In a padded shape, the first tokens of prefills may be computed as decode tokens.
            num_as_decodes = min(max(shape.num_decode_tokens - first, 0), length)
            for start in range(num_as_decodes, length, tile_tokens):
                size = min(tile_tokens, length - start)
                tiles[tile] = first + start, size, sequence.row, chunk.start + start
                tile += 1
            first += length
            if chunk.is_last:
                sample_indices.append(shape.num_decode_tokens + len(sample_indices) - num_decodes)
                logits_indices.append(first - 1)
        sampled = [*decodes, *last_chunks]
        if sampled:
            samples[sample_indices] = self._samples(sampled, logits_indices)
        return PagedInputs(shape, table, sampled, sample_indices)

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

    def _samples(self, sequences: Seq[Sequence], logits_indices: Seq[int]) -> np.ndarray:
        """Return the rows of the samples: (sequences, SAMPLE_COLUMNS) int64."""
        count = len(sequences)
        rows = np.fromiter((s.row for s in sequences), np.int64, count)
        positions = np.fromiter((len(s.output_token_ids) for s in sequences), np.int64, count)
        samples = np.empty((count, SAMPLE_COLUMNS), dtype=np.int64)
        samples[:, 0] = logits_indices
        samples[:, 1] = rows
        seeds = torch.from_numpy(self._seeds[rows])
        samples[:, 2] = sampler.noise_seeds(seeds, torch.from_numpy(positions)).numpy()
        samples[:, 3] = np.minimum(self._top_k[rows], self._vocab_size)
        samples[:, 4] = self._temperatures[rows].view(np.int64)
        return samples


def split_inputs(table: Any, shape: BatchShape) -> tuple[Any, Any, Any]:
    """Return views of a step's tokens, prefill tiles and samples: (number, columns) each.

    Args:
        table: (shape.input_size,), an array or a tensor.
        shape: of the step.
    """
    tokens_end = TOKEN_COLUMNS * shape.num_tokens
    tiles_end = tokens_end + TILE_COLUMNS * shape.num_tiles
    return (
        table[:tokens_end].reshape(-1, TOKEN_COLUMNS),
        table[tokens_end:tiles_end].reshape(-1, TILE_COLUMNS),
        table[tiles_end:].reshape(-1, SAMPLE_COLUMNS),
    )
