"""How pytest runs the tests: what is imported, and on how many processes. In which order: `tests.scheduling`."""

from __future__ import annotations

import gc
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from _pytest.assertion import rewrite

if TYPE_CHECKING:
    from execnet import XSpec
    from xdist.scheduler import LoadScopeScheduling

# Collecting garbage while the tests and the model libraries are imported takes a third of the time.
gc.disable()

# A shell's background jobs ignore both signals, and so would the programs that tests start and interrupt.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)


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


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Return the scheduler of the tests."""
    # Only the process that schedules has imported xdist's.
    from tests.scheduling import Scheduler

    return Scheduler(config, log)
