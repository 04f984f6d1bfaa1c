"""A plan as tensors: which tokens a step computes, where they belong, and what is drawn from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.engine.attention.row_attention import Decoding, Layout, Segment
from worker.engine.batching.scheduler import Plan
from worker.engine.batching.sequence import Sequence
from worker.engine.kv.row_cache import KVCache


@dataclass(frozen=True)
class Step:
    """What `worker.engine.models.llama.Forward` is called with, and who waits for its scores."""

    #: (tokens,) int64.
    ids: Tensor
    #: Each token's, by its index.
    adapters: list[int]
    layout: Layout
    #: The tokens whose successors are wanted, rising.
    keep: list[int]
    #: For whom a token can be drawn: each has one of ``keep``, and one more for each of its draft.
    drawing: list[Sequence]


def lay_out(plan: Plan, cache: KVCache, common: Callable[[list[Sequence]], int]) -> Step:
    """Lay out any step.

    Args:
        plan: what it computes.
        cache: where the keys and values are.
        common: counts the tokens that sequences of one adapter have in common at their beginning.
    """
    ids: list[int] = []
    adapters: list[int] = []
    keep: list[int] = []
    drawing: list[Sequence] = []
    parts: list[Decoding | Segment] = []
    # Sequences of a role are about as long, and their rows lie together.
    by_adapter = cache.device.type == "cpu"
    for decoding, chunks in plan.parts(by_adapter=by_adapter):
        if decoding:
            lengths = [1 + len(s.draft) for s in decoding]
            rows, at = [s.row for s in decoding], [s.cached for s in decoding]
            parts.append(Decoding(rows, at, lengths, common(decoding) if by_adapter else 0))
            keep += range(len(ids), len(ids) + sum(lengths))
            for sequence, length in zip(decoding, lengths, strict=True):
                ids += sequence.newest
                adapters += [sequence.adapter] * length
            drawing += decoding
        for chunk in chunks:
            sequence, length = chunk.sequence, chunk.end - chunk.start
            parts.append(Segment(sequence.row, chunk.start, length))
            ids += sequence.slice(chunk.start, chunk.end)
            adapters += [sequence.adapter] * length
            if chunk.last:
                keep.append(len(ids) - 1)
                drawing.append(sequence)
    layout = Layout.of(cache, parts)
    return Step(torch.tensor(ids, device=cache.device), adapters, layout, keep, drawing)
