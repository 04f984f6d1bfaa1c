"""Processes that compute while something is measured."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

#: It ends with the process that started it, however that ends.
_COMPUTE = """
import os, sys
while os.getppid() == int(sys.argv[1]):
    sum(range(1_000_000))
"""


@contextmanager
def busy_processes(count: int) -> Iterator[list[int]]:
    """Keep this number of processors busy in the ``with`` block; yield the processes' ids."""
    command = [sys.executable, "-c", _COMPUTE, str(os.getpid())]
    processes = [subprocess.Popen(command) for _ in range(count)]
    try:
        yield [process.pid for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
