"""What PyTorch keeps for each thread: its OpenMP team, and the current CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch

Result = TypeVar("Result")


@contextmanager
def in_fresh_thread(function: Callable[[], Result]) -> Iterator[Future[Result]]:
    """Run a function on a new thread that ends with it; the end of the ``with`` block waits for it.

    OpenMP keeps a team of threads for every thread that ever computed in parallel. Once all teams
    together have more threads than there are processors, GNU's implementation stops spinning in all of
    them (libgomp's ``gomp_throttled_spin_count_var``), and every operation waits for the system to wake
    its team: on two processors, a step of a small model then takes twice as long. So whatever computes
    outside an engine's thread, above all loading, runs on a thread that ends.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="fresh") as pool:
        yield pool.submit(function)


def run_in_fresh_thread(function: Callable[[], Result]) -> Result:
    """Run a function as `in_fresh_thread` does; return its result, or raise its exception."""
    with in_fresh_thread(function) as future:
        return future.result()


def on_device(device: torch.device) -> AbstractContextManager[object]:
    """Make a CUDA device the current one of this thread in the ``with`` block; do nothing for other devices.

    PyTorch's operations run where their tensors are. Triton launches kernels, and events are recorded, on the
    thread's current device, which is the first one unless it is set.
    """
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
