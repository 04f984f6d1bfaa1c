"""The attention of a step equals the plain formula, row by row."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from transformers import MistralConfig

from worker.engine.attention.interface import LayerAttention
from worker.engine.attention.row_attention import RowAttention
from worker.engine.attention.row_metadata import DecodeSpan, PrefillSpan
from worker.engine.kv.row_cache import RowKVCache

HEADS, SHARED, SIZE = 6, 2, 8
CONTEXT, ROWS, COMMON = 96, 12, 40


def plain(q: Tensor, keys: Tensor, values: Tensor, at: int, window: int | None) -> Tensor:
    """One token's attention: (heads, size) over (shared, context, size)."""
    first = 0 if window is None else max(0, at + 1 - window)
    keys, values = (
        x.repeat_interleave(HEADS // SHARED, 0)[:, first : at + 1] for x in (keys, values)
    )
    scores = torch.einsum("hd,hkd->hk", q, keys) / math.sqrt(SIZE)
    return torch.einsum("hk,hkd->hd", scores.softmax(-1), values)


@pytest.mark.parametrize("window", [None, 200, 30, 5])
@pytest.mark.parametrize("common", [0, COMMON])
@pytest.mark.parametrize("rows", [[3, 4, 5, 6, 7], [7, 3, 5, 4, 8], [0, 11, 5, 2]])
@pytest.mark.parametrize("lengths", [[1] * 5, [3] * 5, [2, 1, 4, 1, 3]])
def test_each_token_attends_to_its_own_sequence(
    lengths: list[int], rows: list[int], common: int, window: int | None
) -> None:
    """Rows in order, with gaps, and picked; with drafts; with and without cascade attention."""
    cache = random_cache()
    starts, lengths = [COMMON + 3 * i for i in range(len(rows))], lengths[: len(rows)]
    segments = [PrefillSpan(9, 50, 7), PrefillSpan(10, 0, 1)]
    decoding = DecodeSpan(rows, starts, lengths, common)
    check(cache, [segments[0], decoding, segments[1]], window)


@pytest.mark.parametrize("window", [None, 30])
@pytest.mark.parametrize("lengths", [[1] * 9, [2, 1, 4, 1, 3, 1, 1, 2, 1]])
def test_sequences_of_several_adapters_are_attended_together_if_that_is_faster(
    lengths: list[int], window: int | None
) -> None:
    """Spans with a prefill between them, whose rows are mixed; one of them shares a prefix."""
    cache = random_cache()
    first = DecodeSpan([0, 2, 5, 6, 8], [COMMON + i for i in range(5)], lengths[:5], COMMON)
    second = DecodeSpan([1, 3, 4, 7], [COMMON + 10 + i for i in range(4)], lengths[5:])
    attention = check(cache, [PrefillSpan(10, 0, 3), first, PrefillSpan(9, 50, 7), second], window)
    assert len(attention.decodes) == 1
    # Long prefixes are read once for each adapter.
    long = replace(second, rows=[9, 10, 11, 4], starts=[10_000] * 4, common_prefix_len=9_900)
    assert len(RowAttention.build(cache, [first, long]).decodes) == 2


def random_cache() -> RowKVCache:
    """Return a cache whose rows share their first `COMMON` keys and values."""
    torch.manual_seed(0)
    config = MistralConfig(
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=SHARED,
        hidden_size=HEADS * SIZE,
    )
    cache = RowKVCache(config, num_rows=ROWS, max_model_len=CONTEXT, dtype=torch.float32)
    for tensor in (cache.keys[0], cache.values[0]):
        tensor.normal_()
        tensor[:, :, :COMMON] = tensor[0, :, :COMMON]
    return cache


def check(
    cache: RowKVCache, spans: list[DecodeSpan | PrefillSpan], window: int | None
) -> RowAttention:
    """Compare the attention of a step's tokens with the plain formula."""
    layout = RowAttention.build(cache, spans)
    owners: list[int] = []
    at: list[int] = []
    for span in spans:
        if isinstance(span, PrefillSpan):
            span = DecodeSpan([span.row], [span.start], [span.query_len])
        for row, start, length in zip(span.rows, span.starts, span.query_lens, strict=True):
            owners += [row] * length
            at += range(start, start + length)
    assert layout.positions.tolist() == at
    keys, values = cache.keys[0], cache.values[0]
    q = torch.randn(len(at), HEADS, SIZE)
    k, v = torch.randn(2, len(at), SHARED, SIZE)
    output = layout.attend(q, k, v, LayerAttention(0, SIZE**-0.5, window))
    for i, (row, position) in enumerate(zip(owners, at, strict=True)):
        torch.testing.assert_close(keys[row, :, position], k[i])
        expected = plain(q[i], keys[row], values[row], position, window)
        torch.testing.assert_close(output[i], expected)
    return layout
