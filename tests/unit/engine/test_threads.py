"""The number of intra-op threads."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from worker.engine.threads import MIN_PARALLEL_TOKENS, IntraOpThreads, run_in_fresh_thread


@pytest.mark.parametrize(
    ("small", "tokens", "single_threaded"),
    [(True, MIN_PARALLEL_TOKENS - 1, True), (True, MIN_PARALLEL_TOKENS, False), (False, 1, False)],
)
def test_small_steps_of_small_models_use_one_thread(
    small: bool, tokens: int, single_threaded: bool
) -> None:
    def measure() -> tuple[int, int, int]:
        torch.set_num_threads(3)
        threads = IntraOpThreads(small_model=small)
        threads.set_for(tokens)
        during = torch.get_num_threads()
        threads.set_for(MIN_PARALLEL_TOKENS)
        after = torch.get_num_threads()
        threads.set_for(tokens)
        threads.reset()
        return during, after, torch.get_num_threads()

    before = torch.get_num_threads()
    try:
        assert run_in_fresh_thread(measure) == (1 if single_threaded else 3, 3, 3)
    finally:
        torch.set_num_threads(before)


def test_new_threads_use_all_intra_op_threads() -> None:
    before = torch.get_num_threads()

    def serve() -> None:
        threads = IntraOpThreads(small_model=True)
        threads.set_for(1)
        threads.reset()

    run_in_fresh_thread(serve)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == before
