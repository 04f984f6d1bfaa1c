"""Threads that compute: how many share a step, and that none keeps a team of OpenMP's alive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

Result = TypeVar("Result")

#: Steps of a small model with fewer tokens are computed by one thread.
WORTH_SHARING = 32


@contextmanager
def beside(function: Callable[[], Result]) -> Iterator[Future[Result]]:
    """Call a function on a thread that ends with it, while this one goes on; the block's end waits for it.

    OpenMP keeps a team for every thread that ever computed in parallel. As soon as all teams
    together have more threads than there are processors, GNU's implementation no longer waits
    actively in any of them (libgomp's ``gomp_throttled_spin_count_var``), and each product waits
    for the system to wake its team up: on two processors a step of a small model then takes twice
    as long. So what computes outside an engine's thread, loading above all, is done apart.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="apart") as pool:
        yield pool.submit(function)


def apart(function: Callable[[], Result]) -> Result:
    """Call a function as `beside` does; return what it returns, raise what it raises."""
    with beside(function) as future:
        return future.result()


class Sharing:
    """Lets one thread compute what several would not compute sooner. For the thread that computes.

    The products of a small model with a few tokens take microseconds: to wake a team for each of them
    and to wait for it takes as long, and longer where others want its processors, as in a service.
    """

    def __init__(self, *, small: bool) -> None:
        """Count the threads that there are.

        Args:
            small: whether the model's weights stay in the processor's caches. Those of other models
                come from memory, which one thread alone does not use up.
        """
        self._all = self._now = torch.get_num_threads()
        self._small = small

    def share(self, tokens: int) -> None:
        """Choose the threads that compute a step with so many tokens."""
        self._set(1 if self._small and tokens < WORTH_SHARING else self._all)

    def end(self) -> None:
        """Take all threads again: threads that come later begin with what was set last."""
        self._set(self._all)

    def _set(self, threads: int) -> None:
        if threads != self._now:
            torch.set_num_threads(threads)
            self._now = threads
