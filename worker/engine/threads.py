"""What PyTorch keeps for each thread: its OpenMP team, how many of it compute, and the current CUDA device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TypeVar

import torch

Result = TypeVar("Result")

#: A small model computes batches of fewer tokens on one thread.
MIN_PARALLEL_TOKENS = 32


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


class IntraOpThreads:
    """Chooses the number of intra-op threads for each step. Use it on the thread that computes.

    An operation of a small model on few tokens takes microseconds. Waking a team for each takes as long,
    and longer where others need its processors, as in a service.
    """

    def __init__(self, *, small_model: bool) -> None:
        """Start from PyTorch's current number of threads.

        Args:
            small_model: whether the weights stay in the processor's caches. Those of larger models are
                read from memory, whose bandwidth one thread cannot use up.
        """
        self._max = self._current = torch.get_num_threads()
        self._small_model = small_model

    def set_for(self, num_tokens: int) -> None:
        """Set the number of threads for a batch of ``num_tokens`` tokens."""
        single = self._small_model and num_tokens < MIN_PARALLEL_TOKENS
        self._set(1 if single else self._max)

    def reset(self) -> None:
        """Set the original number again: new threads inherit the number that was set last."""
        self._set(self._max)

    def _set(self, num_threads: int) -> None:
        if num_threads != self._current:
            torch.set_num_threads(num_threads)
            self._current = num_threads
