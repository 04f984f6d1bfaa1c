"""Followers of many jobs on one connection, and the order in which their threads run."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from jobs.progress import Progress, TextDeltas
from tests.servers import PATIENCE, RedisServer

#: More than run at the same time.
FOLLOWERS = 20


@pytest.fixture
def progress(redis_server: RedisServer) -> Iterator[Progress]:
    progress = Progress(redis_server.url)
    yield progress
    for number in range(FOLLOWERS):
        progress.forget(f"job-{number}")
    progress.close()


def publish(progress: Progress, piece: int) -> None:
    """Publish the next piece of each job's text."""
    texts = [(f"job-{n}", TextDeltas(n, piece, [f"{piece} "])) for n in range(FOLLOWERS)]
    progress.publish(texts)


def test_followers_get_all_texts_in_order(progress: Progress) -> None:
    pieces = 50
    following = threading.Barrier(FOLLOWERS + 1)

    def follow(number: int) -> list[int]:
        starts: list[int] = []
        with progress.follow(f"job-{number}") as follower:
            following.wait(PATIENCE)
            while len(starts) < pieces:
                texts = follower.read(PATIENCE).texts
                assert texts, "woken in time"
                starts += [text.start for text in texts]
        return starts

    with ThreadPoolExecutor(FOLLOWERS) as pool:
        results = pool.map(follow, range(FOLLOWERS))
        following.wait(PATIENCE)
        for piece in range(pieces):
            publish(progress, piece)
        assert list(results) == [list(range(pieces))] * FOLLOWERS


def test_a_follower_that_does_not_come_back_delays_no_other(progress: Progress) -> None:
    """Threads run one after the other, but nobody waits for one that the database or its client holds up."""
    with ExitStack() as stack, ThreadPoolExecutor(FOLLOWERS) as pool:
        followers = [
            stack.enter_context(progress.follow(f"job-{number}")) for number in range(FOLLOWERS)
        ]
        begun = time.monotonic()
        reads = [pool.submit(follower.read, PATIENCE) for follower in followers]
        publish(progress, 0)
        # Each has one text, and none reads on.
        assert all(read.result().texts for read in reads)
        assert time.monotonic() - begun < PATIENCE / 2
