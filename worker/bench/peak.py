"""What a processor can do at most, measured: the limit that speeds are compared with."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

#: Each measurement is repeated, and the best counts.
REPEATS = 5
#: Rows, columns and inner size of the product, and elements of the vector that is read.
ROWS, SIZE, READ = 512, 4096, 2**27


@dataclass(frozen=True)
class Peak:
    """The most that was reached."""

    #: Floating point operations a second, in a large product.
    flops: float
    #: Bytes a second, read from memory one after another.
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
        """The least seconds for so many operations on so many bytes: the roofline's."""
        return max(operations / self.flops, bytes_ / self.bandwidth)


def _best(function: Callable[[], object], device: torch.device) -> float:
    found = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function()
        if device.type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return min(found)
