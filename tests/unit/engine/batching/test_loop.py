"""The engine's thread: requests, cancels, deadlines, failures, and the end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from jobs.pipeline import Role, Sampling
from tests.unit.engine.fake_runner import CYCLE, FakeRunner
from worker.engine.batching.loop import EngineLoop
from worker.engine.batching.runner_setup import RunnerSetup
from worker.engine.batching.sequence import Sequence
from worker.engine.batching.step_watch import NUM_LOOKS
from worker.engine.interface import EngineError, FinishReason, Generation, Request
from worker.engine.intra_op_threads import IntraOpThreads
from worker.engine.kv.row_manager import RowManager
from worker.engine.threads import run_in_fresh_thread
from worker.engine.tokenization.detokenizer import Detokenizer

#: Seconds of any wait; a good run needs a fraction.
PATIENCE = 30
#: Seconds of a step, as on a device: without them, text would be sampled faster than it is decoded.
STEP = 1e-3
#: Tokens of a text that takes longer than any test.
ENDLESS = 100_000
CONTEXT = ENDLESS + 100


@pytest.fixture
def tokenizer(byte_level: Any) -> Any:
    return byte_level


@pytest.fixture
def runner() -> FakeRunner:
    kv = RowManager(2, max_model_len=CONTEXT, num_adapters=1)
    return FakeRunner(kv, launch_fault=lambda _: time.sleep(STEP))


@pytest.fixture
def loop(runner: FakeRunner, tokenizer: Any) -> Iterator[EngineLoop]:
    threads = IntraOpThreads(small_model=False)
    setup = RunnerSetup(runner, 2, 64, threads, torch.device("cpu"))
    loop = EngineLoop(
        setup, tokenizer, drafter=None, stop_token_ids=(), on_engine_dead=lambda: None
    )
    yield loop
    loop.close()


def submit(
    loop: EngineLoop, tokenizer: Any, limit: int, *, deadline: float = float("inf")
) -> Generation:
    generation = Generation(Request(Role.ACTOR, "", Sampling(), deadline=deadline))
    loop.submit(Sequence(generation, [10, 11, 12], limit, 0, Detokenizer(tokenizer)))
    return generation


def test_requests_get_their_texts(loop: EngineLoop, tokenizer: Any) -> None:
    """More requests than slots, and one after the loop was idle."""
    generations = [submit(loop, tokenizer, limit) for limit in (5, 8, 11)]
    completions = [generation.result(PATIENCE) for generation in generations]
    completions.append(submit(loop, tokenizer, 6).result(PATIENCE))
    for limit, completion in zip((5, 8, 11, 6), completions, strict=True):
        token_ids = [CYCLE[(3 + i) % len(CYCLE)] for i in range(limit)]
        assert completion.text == tokenizer.decode(token_ids)
        assert completion.finish_reason is FinishReason.LENGTH
        assert (completion.prompt_tokens, completion.output_tokens) == (3, limit)


def test_text_is_streamed_before_the_end(loop: EngineLoop, tokenizer: Any) -> None:
    generation = submit(loop, tokenizer, ENDLESS)
    assert next(iter(generation))
    assert not generation.finished
    generation.cancel()
    completion = generation.result(PATIENCE)
    assert completion.finish_reason is FinishReason.CANCELLED
    assert 0 < completion.output_tokens < ENDLESS
    assert generation.deltas_from(0) == completion.deltas[: len(generation.deltas_from(0))]


def test_a_cancelled_request_frees_its_slot(loop: EngineLoop, tokenizer: Any) -> None:
    running = [submit(loop, tokenizer, ENDLESS) for _ in range(2)]
    for generation in running:
        next(iter(generation))
    waiting = submit(loop, tokenizer, 3)
    running[0].cancel()
    assert waiting.result(PATIENCE).output_tokens == 3
    assert not running[1].finished


def test_a_request_ends_at_its_deadline(loop: EngineLoop, tokenizer: Any) -> None:
    overdue = submit(loop, tokenizer, ENDLESS, deadline=time.monotonic() - 1)
    completion = overdue.result(PATIENCE)
    assert (completion.finish_reason, completion.output_tokens) == (FinishReason.DEADLINE, 0)


def test_an_error_in_the_loop_fails_the_running_requests_only(
    loop: EngineLoop, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    flush, failed = loop._flush_outputs, threading.Event()

    def fail_once() -> None:
        if loop.scheduler.running and not failed.is_set():
            failed.set()
            raise ValueError("broken")
        flush()

    monkeypatch.setattr(loop, "_flush_outputs", fail_once)
    with pytest.raises(EngineError, match="ValueError: broken"):
        submit(loop, tokenizer, ENDLESS).result(PATIENCE)
    assert submit(loop, tokenizer, 3).result(PATIENCE).output_tokens == 3


def test_closing_fails_running_and_waiting_requests(loop: EngineLoop, tokenizer: Any) -> None:
    generations = [submit(loop, tokenizer, ENDLESS) for _ in range(3)]
    next(iter(generations[0]))
    loop.close()
    for generation in generations:
        with pytest.raises(EngineError, match="the engine was closed"):
            generation.result(0)


def test_steps_are_launched_with_the_engines_device_as_the_current_one(
    runner: FakeRunner, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several GPUs, Triton takes the thread's current one, wherever the tensors are. The GPUs here are fakes."""
    second = torch.device("cuda:1")
    current = [torch.device("cuda:0")]

    @contextmanager
    def fake_device(device: torch.device) -> Iterator[None]:
        current.append(device)
        yield
        current.pop()

    monkeypatch.setattr(torch.cuda, "device", fake_device)
    launched_on = []
    runner.launch_fault = lambda _: launched_on.append(current[-1])
    setup = RunnerSetup(runner, 2, 64, IntraOpThreads(small_model=False), second)
    loop = EngineLoop(
        setup, tokenizer, drafter=None, stop_token_ids=(), on_engine_dead=lambda: None
    )
    submit(loop, tokenizer, 3).result(PATIENCE)
    loop.close()
    assert set(launched_on) == {second}


def test_an_engine_that_is_busy_for_long_does_not_hang(
    runner: FakeRunner, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its steps ends soon: after as many looks of the watch, however long these take here."""
    looks, dead = threading.Semaphore(0), threading.Event()
    current_pass = EngineLoop._current_pass

    def look(loop: EngineLoop) -> int | None:
        looks.release()
        return current_pass(loop)

    def wait_for_a_look(_: Any) -> None:
        assert looks.acquire(timeout=PATIENCE)

    monkeypatch.setattr(EngineLoop, "_current_pass", look)
    runner.launch_fault = wait_for_a_look
    loop = EngineLoop(
        RunnerSetup(runner, 2, 64, IntraOpThreads(small_model=False), torch.device("cpu")),
        tokenizer,
        drafter=None,
        stop_token_ids=(),
        on_engine_dead=dead.set,
        max_step_seconds=1e-3 * NUM_LOOKS,
    )
    assert submit(loop, tokenizer, 3 * NUM_LOOKS).result(PATIENCE).output_tokens == 3 * NUM_LOOKS
    assert not dead.is_set()
    loop.close()
    assert "step watch" not in [thread.name for thread in threading.enumerate()]


def test_threads_started_after_the_end_compute_with_all_processors(
    runner: FakeRunner, tokenizer: Any
) -> None:
    """As another engine's do: steps of a small model are computed on one."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        threads = IntraOpThreads(small_model=True)

        def compute(_: Any) -> None:
            with threads.computing(1):
                pass

        runner.launch_fault = compute
        setup = RunnerSetup(runner, 2, 64, threads, torch.device("cpu"))
        loop = EngineLoop(
            setup, tokenizer, drafter=None, stop_token_ids=(), on_engine_dead=lambda: None
        )
        submit(loop, tokenizer, 3).result(PATIENCE)
        loop.close()
        assert run_in_fresh_thread(torch.get_num_threads) == 2
    finally:
        torch.set_num_threads(before)
