"""Weights are checked for NaN and infinity in every dtype."""

from __future__ import annotations

import pytest
import torch

from worker.lora.tensors import is_finite

FLOATS = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("place", [0, 5_000, 9_999])
def test_nan_is_found_anywhere(dtype: torch.dtype, place: int) -> None:
    values = torch.linspace(-3, 3, 10_000)
    assert is_finite(values.to(dtype).view(100, 100))
    values[place] = float("nan")
    assert not is_finite(values.to(dtype).view(100, 100))


@pytest.mark.parametrize("dtype", FLOATS[:4])
@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_infinity_is_found_and_the_largest_number_is_finite(
    dtype: torch.dtype, value: float
) -> None:
    """A sum of such numbers would overflow."""
    values = torch.full((10_000,), torch.finfo(dtype).max, dtype=dtype)
    assert is_finite(values)
    assert is_finite(-values)
    values[77] = value
    assert not is_finite(values)


def test_an_empty_tensor_is_finite() -> None:
    assert is_finite(torch.empty(0, 4))
