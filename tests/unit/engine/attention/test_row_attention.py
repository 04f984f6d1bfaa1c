"""The attention of a step equals the plain formula, row by row."""

from __future__ import annotations

import math

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
    torch.manual_seed(0)
    config = MistralConfig(
        num_hidden_layers=1,
        num_attention_heads=HEADS,
        num_key_value_heads=SHARED,
        hidden_size=HEADS * SIZE,
    )
    cache = RowKVCache(config, num_rows=ROWS, max_model_len=CONTEXT, dtype=torch.float32)
    keys, values = cache.keys[0], cache.values[0]
    keys.normal_()
    values.normal_()
    for tensor in (keys, values):
        tensor[:, :, :COMMON] = tensor[0, :, :COMMON]
    starts, lengths = [COMMON + 3 * i for i in range(len(rows))], lengths[: len(rows)]
    segments = [PrefillSpan(9, 50, 7), PrefillSpan(10, 0, 1)]
    decoding = DecodeSpan(rows, starts, lengths, common)
    layout = RowAttention.build(cache, [segments[0], decoding, segments[1]])
    together = list(zip(rows, starts, lengths, strict=True))
    owners = [9] * 7 + [row for row, _, length in together for _ in range(length)] + [10]
    positions = [start + i for _, start, length in together for i in range(length)]
    at = [*range(50, 57), *positions, 0]
    assert layout.positions.tolist() == at
    q = torch.randn(len(at), HEADS, SIZE)
    k, v = torch.randn(2, len(at), SHARED, SIZE)
    output = layout.attend(q, k, v, LayerAttention(0, SIZE**-0.5, window))
    for i, (row, position) in enumerate(zip(owners, at, strict=True)):
        torch.testing.assert_close(keys[row, :, position], k[i])
        expected = plain(q[i], keys[row], values[row], position, window)
        torch.testing.assert_close(output[i], expected)
