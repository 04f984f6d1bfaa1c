"""Processes that compute while something is measured."""

from __future__ import annotations

import subprocess
import sys
from contextlib import suppress

import psutil

from cli.bench.busy import busy_processes

KILLED = """
import os
from cli.bench.busy import busy_processes

with busy_processes(1) as (pid,):
    print(pid, flush=True)
    os.kill(os.getpid(), 9)
"""


def test_processes_compute_until_the_block_ends() -> None:
    with busy_processes(2) as pids:
        for process in map(psutil.Process, pids):
            before = process.cpu_times().user
            while process.cpu_times().user == before:
                pass
    assert not any(map(psutil.pid_exists, pids))


def test_they_end_with_the_benchmark_however_it_ends() -> None:
    killed = subprocess.run(
        [sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True, check=False
    )
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int(killed.stdout)).wait(timeout=60)
