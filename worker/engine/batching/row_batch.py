"""A scheduled step as the input of a model over rows: tokens, adapters, attention metadata."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.attention.row_attention import RowAttention
from worker.engine.attention.row_metadata import DecodeSpan, PrefillSpan
from worker.engine.batching.scheduler_output import SchedulerOutput
from worker.engine.batching.sequence import Sequence
from worker.engine.kv.row_cache import RowKVCache


@dataclass(frozen=True)
class RowBatch:
    """The input of a `worker.engine.models.model.RowModel`, and the sequences that are sampled."""

    #: (tokens,) int64.
    input_ids: Tensor
    #: One for each token.
    adapter_ids: list[int]
    attention: RowAttention
    #: Indices of the tokens after which logits are wanted, ascending.
    logits_indices: list[int]
    #: Each has one of the logits indices, and one more for each draft token.
    sampled_sequences: list[Sequence]


def prepare_row_batch(
    output: SchedulerOutput,
    cache: RowKVCache,
    common_prefix_len: Callable[[list[Sequence]], int],
) -> RowBatch:
    """Prepare the input of a step.

    Args:
        output: what the step computes.
        cache: the KV cache.
        common_prefix_len: returns the length of the prefix that sequences of one adapter share.
    """
    input_ids: list[int] = []
    adapter_ids: list[int] = []
    logits_indices: list[int] = []
    sampled: list[Sequence] = []
    spans: list[DecodeSpan | PrefillSpan] = []
    # Sequences of a role share a prefix, and their tokens are multiplied with the same weights.
    for decodes, prefills in output.by_adapter():
        if decodes:
            query_lens = [1 + len(s.draft_token_ids) for s in decodes]
            rows, starts = [s.row for s in decodes], [s.num_computed_tokens for s in decodes]
            spans.append(DecodeSpan(rows, starts, query_lens, common_prefix_len(decodes)))
            logits_indices += range(len(input_ids), len(input_ids) + sum(query_lens))
            for sequence, query_len in zip(decodes, query_lens, strict=True):
                input_ids += sequence.decode_token_ids
                adapter_ids += [sequence.adapter_id] * query_len
            sampled += decodes
        for chunk in prefills:
            sequence, query_len = chunk.sequence, chunk.end - chunk.start
            spans.append(PrefillSpan(sequence.row, chunk.start, query_len))
            input_ids += sequence.slice(chunk.start, chunk.end)
            adapter_ids += [sequence.adapter_id] * query_len
            if chunk.is_last:
                logits_indices.append(len(input_ids) - 1)
                sampled.append(sequence)
    attention = RowAttention.build(cache, spans)
    return RowBatch(torch.tensor(input_ids), adapter_ids, attention, logits_indices, sampled)
