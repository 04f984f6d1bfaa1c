"""Linear layers in oneDNN's layout."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from worker.engine.models.packed_linear import PackedLinear, pack_linear, padded_rows


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 512), (70, 512), (1, 3, 512)])
@torch.inference_mode()
def test_a_packed_layer_computes_the_same(bias: bool, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(512, 520, bias=bias)
    packed = pack_linear(linear)
    assert isinstance(packed, PackedLinear)
    x = torch.randn(shape)
    torch.testing.assert_close(packed(x), linear(x), rtol=1e-4, atol=1e-5)


def test_layers_that_gain_nothing_stay_as_they_are() -> None:
    """Small ones, other dtypes, and layers of another kind, such as quantized ones."""
    layers: list[nn.Module] = [
        nn.Linear(8, 8),
        nn.Linear(512, 520, dtype=torch.bfloat16),
        nn.Identity(),
    ]
    for layer in layers:
        assert pack_linear(layer) is layer


def test_prompts_have_few_numbers_of_rows() -> None:
    """oneDNN keeps a kernel for each, which took 1 GB with all numbers of rows up to 600."""
    padded = [padded_rows(rows) for rows in range(1, 4097)]
    assert padded[:64] == list(range(1, 65))
    assert len(set(padded[64:])) < 64
    assert all(rows <= more <= rows * 1.125 for rows, more in enumerate(padded, 1))
