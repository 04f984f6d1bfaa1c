"""A step's input is one array of bytes, whose parts a device reads as they are."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from tests.unit.engine.sequences import sequence
from worker.engine.batching.batch_shape import BatchShape
from worker.engine.batching.paged_inputs import ALIGNMENT, PagedInputBuilder, split_inputs
from worker.engine.batching.scheduler_output import PrefillChunk, SchedulerOutput
from worker.engine.batching.sequence import PENDING_TOKEN

#: The parts, and their dtypes.
DTYPES = {
    "token_ids": torch.int64,
    "adapter_ids": torch.int32,
    "rows": torch.int32,
    "positions": torch.int32,
    "tiles": torch.int32,
    "logits_indices": torch.int64,
    "sample_rows": torch.int64,
    "noise_seeds": torch.int64,
    "top_k": torch.int64,
    "temperatures": torch.float32,
}


@pytest.mark.parametrize("tokens", [1, 5, 8, 63])
@pytest.mark.parametrize(("tiles", "samples"), [(0, 1), (3, 5), (4, 7)])
def test_parts_are_aligned_and_do_not_overlap(tokens: int, tiles: int, samples: int) -> None:
    shape = BatchShape(1, tokens, tiles, samples, 100)
    data = torch.from_numpy(builder().padding(shape)).clone()
    step = split_inputs(data, shape)
    number = 0
    expected = {}
    for name, dtype in DTYPES.items():
        part = getattr(step, name)
        assert part.dtype is dtype
        assert part.is_contiguous()
        assert (part.data_ptr() - data.data_ptr()) % ALIGNMENT == 0
        numbers = torch.arange(number, number + part.numel()).view(part.shape)
        expected[name] = numbers.tolist()
        part.copy_(numbers)
        number += part.numel()
    again: Any = dataclasses.asdict(split_inputs(data.numpy(), shape))
    assert {name: part.tolist() for name, part in again.items()} == expected


def test_a_step_is_written_beside_padding() -> None:
    decoding = sequence([9, 8, 7, 6, 5], adapter=1)
    prompt = sequence(list(range(20, 29)), adapter=2)
    decoding.row, prompt.row = 3, 0
    decoding.output_token_ids = [PENDING_TOKEN]
    decoding.num_computed_tokens = 5
    output = SchedulerOutput([decoding], [PrefillChunk(prompt, 2, 9)])
    captured = BatchShape(2, num_tokens=12, num_tiles=4, num_samples=5, max_kv_len=64)
    inputs = builder().build(output, [captured])
    assert inputs.shape == captured
    step = split_inputs(inputs.data, inputs.shape)
    assert step.token_ids.tolist() == [PENDING_TOKEN, *range(22, 29), 0, 0, 0, 0]
    assert step.adapter_ids.tolist() == [1, *[2] * 7, *[-1] * 4]
    assert step.rows.tolist() == [3, *[0] * 11]
    assert step.positions.tolist() == [5, *range(2, 9), *[-1] * 4]
    # The chunk's first token is computed as a decode token.
    assert step.tiles.tolist() == [[2, 4, 0, 3], [6, 2, 0, 7], [0] * 4, [0] * 4]
    assert inputs.sample_indices == [0, 2]
    assert step.logits_indices.tolist() == [0, 0, 7, 0, 0]
    assert step.sample_rows.tolist() == [3, 8, 0, 8, 8]
    assert (step.top_k[[1, 3, 4]] == 1).all()
    assert not step.temperatures[[1, 3, 4]].any()
    request = decoding.generation.request.sampling
    assert step.top_k[0] == request.top_k
    assert step.temperatures[0] == np.float32(request.temperature)


def builder() -> PagedInputBuilder:
    return PagedInputBuilder(8, max_kv_len=64, tile_tokens=4, vocab_size=1000)
