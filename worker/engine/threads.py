"""Threads that compute, and that must not keep OpenMP's teams alive."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Result = TypeVar("Result")


def apart(function: Callable[[], Result]) -> Result:
    """Call a function on a thread that ends with it; return what it returns, raise what it raises.

    OpenMP keeps a team for every thread that ever computed in parallel. As soon as all teams
    together have more threads than there are processors, GNU's implementation no longer waits
    actively in any of them (libgomp's ``gomp_throttled_spin_count_var``), and each product waits
    for the system to wake its team up: on two processors a step of a small model then takes twice
    as long. So what computes outside an engine's thread, loading above all, is done apart.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="apart") as pool:
        return pool.submit(function).result()
