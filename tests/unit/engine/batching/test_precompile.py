"""Kernels are compiled on threads while the weights are loaded. Compiler and device are fakes."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Executor, Future
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import torch

from worker.engine.batching import precompile
from worker.engine.batching.precompile import KernelCompilation

DEVICE = torch.device("cuda:0")
#: Seconds until what must happen is given up.
PATIENCE = 30.0


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(precompile, "MAX_THREADS", 1)


def compilation(compiler: Any, monkeypatch: pytest.MonkeyPatch) -> KernelCompilation:
    runner: Any = None
    monkeypatch.setattr(precompile, "compile_kernels", compiler)
    return KernelCompilation(runner, DEVICE)


def test_all_kernels_are_compiled_once_the_weights_are_loaded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = threading.Event()
    compiled: list[int] = []

    def compile_(_runner: object, pool: Executor) -> None:
        pool.submit(loaded.wait, PATIENCE)
        for number in range(3):
            pool.submit(compiled.append, number)

    with compilation(compile_, monkeypatch):
        assert not compiled
        loaded.set()
    assert compiled == [0, 1, 2]


def test_a_start_that_fails_waits_for_no_further_kernel(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun = threading.Event()
    compiled: list[str] = []

    def compile_(_runner: object, pool: Executor) -> None:
        next_kernel: Future[Future[None]] = Future()

        def compile_one() -> None:
            begun.set()
            with suppress(CancelledError):
                next_kernel.result(PATIENCE).result(PATIENCE)

        pool.submit(compile_one)
        next_kernel.set_result(pool.submit(compiled.append, "next"))
        next_kernel.result().result()

    def load() -> None:
        assert begun.wait(PATIENCE)
        raise ValueError("the weights are damaged")

    with pytest.raises(ValueError, match="damaged"), compilation(compile_, monkeypatch):
        load()
    assert not compiled
    assert not caplog.records


def test_a_compiler_that_fails_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def compile_(_runner: object, pool: Executor) -> None:
        pool.submit(int, "no number").result()

    with compilation(compile_, monkeypatch):
        pass
    assert [record.message for record in caplog.records] == [
        "kernels are compiled at their first use"
    ]
