"""Threads that share a step's computing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from worker.engine.threads import WORTH_SHARING, Sharing, apart


@pytest.mark.parametrize(
    ("small", "tokens", "alone"),
    [(True, WORTH_SHARING - 1, True), (True, WORTH_SHARING, False), (False, 1, False)],
)
def test_one_thread_computes_small_steps_of_small_models(
    small: bool, tokens: int, alone: bool
) -> None:
    def threads() -> tuple[int, int, int]:
        torch.set_num_threads(3)
        sharing = Sharing(small=small)
        sharing.share(tokens)
        during = torch.get_num_threads()
        sharing.share(WORTH_SHARING)
        after = torch.get_num_threads()
        sharing.share(tokens)
        sharing.end()
        return during, after, torch.get_num_threads()

    before = torch.get_num_threads()
    try:
        assert apart(threads) == (1 if alone else 3, 3, 3)
    finally:
        torch.set_num_threads(before)


def test_threads_that_come_later_share_again() -> None:
    before = torch.get_num_threads()

    def serve() -> None:
        sharing = Sharing(small=True)
        sharing.share(1)
        sharing.end()

    apart(serve)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == before
