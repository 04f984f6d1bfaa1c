"""Faults in an engine's steps: fakes, since no real device fails on demand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from worker.engine.batching.engine import BatchingEngine


def before_launch(engine: BatchingEngine, fault: Callable[[Any], object]) -> None:
    """Call a function, which may raise, with each step before it is launched."""
    runner: Any = engine._runner
    launch = runner.launch

    def launching(output: Any) -> Any:
        fault(output)
        return launch(output)

    runner.launch = launching


class _FailedStep:
    """A launched step that fails when it is read, as CUDA reports errors late."""

    def __init__(self, launched: Any) -> None:
        self.sampled_sequences = launched.sampled_sequences

    def get_output(self) -> Any:
        raise RuntimeError("an illegal step")


def fail_reads(engine: BatchingEngine, fails: Callable[[Any], bool]) -> None:
    """Let steps for which ``fails`` returns True fail when they are read."""
    runner: Any = engine._runner
    launch = runner.launch

    def launching(output: Any) -> Any:
        launched = launch(output)
        return _FailedStep(launched) if fails(output) else launched

    runner.launch = launching
