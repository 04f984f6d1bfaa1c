"""Measures the peak throughput of a processor, the roofline that speeds are compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

#: The number of repetitions of each measurement; the fastest counts.
REPEATS = 5
#: Rows of the product, its columns and inner size, and elements of the vector that is read.
ROWS, SIZE, READ = 512, 4096, 2**27


@dataclass(frozen=True)
class Peak:
    """Peak throughput."""

    #: Floating point operations a second, in a large product.
    flops: float
    #: Bytes a second, read sequentially from memory.
    bandwidth: float

    @classmethod
    def measure(cls, dtype: torch.dtype, device: torch.device) -> Peak:
        a = torch.ones(ROWS, SIZE, dtype=dtype, device=device)
        b = torch.ones(SIZE, SIZE, dtype=dtype, device=device)
        seconds = _best(lambda: a @ b, device)
        long = torch.ones(READ, dtype=dtype, device=device)
        read = _best(long.sum, device)
        return cls(2 * ROWS * SIZE**2 / seconds, long.nbytes / read)

    def seconds(self, operations: float, bytes_: float) -> float:
        """Return the minimum seconds for a number of operations on a number of bytes (roofline model)."""
        return max(operations / self.flops, bytes_ / self.bandwidth)


def _best(function: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)
