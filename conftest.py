"""How pytest runs the tests: what is imported, on how many processes, and in which order."""

from __future__ import annotations

import gc
import os
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.assertion import rewrite

if TYPE_CHECKING:
    from execnet import XSpec
    from xdist.scheduler import LoadScopeScheduling
    from xdist.workermanage import WorkerController

# Collecting garbage while the tests and the model libraries are imported takes a third of the time.
gc.disable()

# A shell's background jobs ignore both signals, and so would the programs that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)

#: Modules that take longest, by what they do most: wait for time to pass, or compute. They begin
#: first, one of each in turn, so that the processors are busy and no long one is left for the end.
#: One that is missing here costs nothing but time.
WAITING = [
    "acceptance/test_faults",
    "acceptance/test_redis_failover",
    "acceptance/test_postgresql_failover",
    "acceptance/test_outages",
    "acceptance/test_hosts",
    "acceptance/test_rolling_upgrade",
    "acceptance/test_migrating",
    "acceptance/test_kills",
    "acceptance/browser/test_following",
    "acceptance/test_description",
    "acceptance/test_clients",
    "acceptance/test_storm",
    "acceptance/test_batches",
    "acceptance/test_examples",
]
COMPUTING = [
    "integration/test_adapter_kinds",
    "acceptance/test_up",
    "unit/engine/cuda/test_kernels",
    "integration/test_gpu_check",
    "integration/test_bench",
    "acceptance/browser/test_appearance",
    "acceptance/browser/test_asking",
    "integration/test_cuda_graphs",
    "integration/test_batching",
    "integration/test_log_tampering",
    "integration/test_log",
    "integration/batch_api/test_runner",
    "integration/test_evaluation",
    "integration/test_demo",
    "integration/test_history",
    "acceptance/test_demo",
    "acceptance/test_full_disk",
    "acceptance/test_redis_rights",
    "acceptance/test_starts",
]


def pytest_collection_finish() -> None:
    """Have later collections of garbage skip what was imported: it stays."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Let the interpreter take everything down: otherwise Triton reports leaks.

    A forked process ends without that. pytest collects garbage several times at its end: all that was imported
    would be looked at, and so copied from the process that was forked.
    """
    if not (hasattr(config, "workerinput") and "TESTS_FORK_SERVER" in os.environ):
        gc.unfreeze()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """``-n logical``: one for each processor. ``-n auto``: more, since many tests wait."""
    processors = len(os.sched_getaffinity(0))
    return processors if config.option.numprocesses == "logical" else 1 + 2 * processors


def pytest_xdist_setupnodes(config: pytest.Config, specs: list[XSpec]) -> None:
    """Fork the processes from one that has imported what they need, instead of importing it in each."""
    if config.getoption(
        "cov_source", None
    ):  # Imported before, much would look as if it were not run.
        return
    from tests.forked import start_server

    start_server("tests.preloaded", "tests.preloaded_for_tests")
    keep_rewritten(config)
    client = Path(__file__).parent / "tests" / "fork_client.py"
    for spec in specs:
        spec.python = f"{sys.executable} -IS {client}"


def keep_rewritten(config: pytest.Config) -> None:
    """Keep the tests as pytest rewrites them: otherwise all processes would do it, at the same time."""
    if sys.dont_write_bytecode:
        return
    state = config.stash[rewrite.assertstate_key]
    for file in Path(__file__).parent.glob("tests/**/test_*.py"):
        folder = rewrite.get_cache_dir(file)
        kept = folder / f"{file.stem}{rewrite.PYC_TAIL}"
        if rewrite._read_pyc(file, kept) is None and rewrite.try_makedirs(folder):
            source, code = rewrite._rewrite_test(file, config)
            rewrite._write_pyc(state, code, source, kept)


def unit_of(nodeid: str) -> str:
    """Return what a test shares a process with: the tests of its module on the same database."""
    module = nodeid.split("::")[0].removeprefix("tests/").removesuffix(".py")
    database = re.search(r"[\[-](sqlite|postgresql)[\]-]", nodeid)
    return f"{module} {database[1]}" if database else module


def rank_of(unit: str) -> tuple[int, int]:
    """Return a unit's place in the order: the waiting ones and the computing ones take turns."""
    module = unit.split()[0]
    for turn, modules in enumerate((WAITING, COMPUTING)):
        if module in modules:
            return modules.index(module), turn
    return max(len(WAITING), len(COMPUTING)), 0


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Return a scheduler that gives each process one such unit after the other."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
        def _split_scope(self, nodeid: str) -> str:
            return unit_of(nodeid)

        def _assign_work_unit(self, node: WorkerController) -> None:
            self.workqueue.move_to_end(min(self.workqueue, key=rank_of), last=False)
            super()._assign_work_unit(node)

    return Scheduler(config, log)
