"""The device's peak, with which speeds are compared, measured in the same run."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from worker.bench.peak import Peak

#: Each measurement is repeated, and the best counts.
REPEATS = 10


def measure(dtype: torch.dtype, device: torch.device, *, size: int, read: int) -> Peak:
    """Multiply large matrices, and read much memory.

    Args:
        dtype: of the product.
        device: where.
        size: rows and columns of both matrices.
        read: number of bytes that are read.
    """
    a = torch.ones(size, size, dtype=dtype, device=device)
    flops = 2 * size**3 / _best(lambda: a @ a, device)
    long = torch.ones(read // 4, dtype=torch.float32, device=device)
    matrix = long[: len(long) // 4096 * 4096].view(-1, 4096)
    vector = torch.ones(4096, device=device)
    ways: list[Callable[[], object]] = [long.sum, long.max, lambda: matrix @ vector]
    return Peak(flops, long.nbytes / min(_best(way, device) for way in ways))


def _best(function: Callable[[], object], device: torch.device) -> float:
    """Return the shortest time of a function on the device, in seconds, without its launch."""
    function()
    seconds: list[float] = []
    for _ in range(REPEATS):
        if device.type == "cuda":
            event: Any = torch.cuda.Event
            start, end = event(enable_timing=True), event(enable_timing=True)
            start.record()
            function()
            end.record()
            end.synchronize()
            seconds.append(float(start.elapsed_time(end)) / 1e3)
        else:
            before = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - before)
    return min(seconds)
