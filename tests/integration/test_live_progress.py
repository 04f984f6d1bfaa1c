"""Followers of many jobs on one connection, and the order in which their threads run."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest
import redis

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
    texts = [(f"job-{n}", TextDeltas(f"{n}", piece, [f"{piece} "])) for n in range(FOLLOWERS)]
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


def test_what_others_write_hides_no_text(
    progress: Progress, redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    junk = (
        {"text": b"\xff\x00"},
        {"text": "[1, 0]"},
        {"text": '["1", 0, "ab"]'},
        {b"\xff": b"\xff"},
    )
    with redis.Redis.from_url(redis_server.url) as client:
        client.set("helixq:live:job-0", b"\xff")
        for fields in junk:
            client.xadd("helixq:live:job-1", fields)
        with ExitStack() as stack:
            followers = [stack.enter_context(progress.follow(f"job-{n}")) for n in range(3)]
            assert followers[1].read(PATIENCE).texts == []
            # The first one to be published is refused, if nobody has read before.
            publish(progress, 0)
            publish(progress, 1)
            for number in (1, 2):
                starts: list[int] = []
                deadline = time.monotonic() + PATIENCE
                while len(starts) < 2 and time.monotonic() < deadline:
                    starts += [text.start for text in followers[number].read(1).texts]
                assert starts == [0, 1]
        assert client.type("helixq:live:job-0") in (b"none", b"stream")
    said = [record.message for record in caplog.records]
    assert "'helixq:live:job-0' in Redis was deleted: it was no stream of live progress" in said
    assert "entries of live progress in Redis are ignored: they are no text of a stage" in said
    assert len(said) < 8, said


def test_a_refusal_of_redis_is_logged_without_the_text(
    redis_server: RedisServer, progress: Progress, caplog: pytest.LogCaptureFixture
) -> None:
    with redis.Redis.from_url(redis_server.url) as client:
        client.set("helixq:live:job-0", "x")
        progress.publish([("job-0", TextDeltas("1", 0, ["a secret answer"]))])
        client.delete("helixq:live:job-0")
    assert "live progress is not published: WRONGTYPE" in caplog.text
    assert "secret" not in caplog.text


def test_the_texts_of_lost_attempts_are_those_that_were_published(progress: Progress) -> None:
    progress.publish(
        [
            ("job-0", None),
            ("job-0", TextDeltas("1", 0, ["a ", "b "])),
            ("job-0", TextDeltas("2", 0, ["other "])),
            ("job-0", TextDeltas("1", 0, ["a ", "b "])),
            ("job-0", TextDeltas("1", 2, ["c "])),
            ("job-1", TextDeltas("4", 0, [])),
            ("job-2", TextDeltas("5", 1, ["what came before it is lost "])),
            ("job-3", None),
        ]
    )
    lost = [("job-0", "1"), ("job-1", "4"), ("job-2", "5"), ("job-3", "6"), ("job-4", "7")]
    known = {"1": ["a ", "b ", "c "], "4": []}
    assert progress.close_texts(lost) == known
    progress.publish([("job-0", TextDeltas("1", 3, ["late "]))])
    assert progress.close_texts(lost) == known, "a second sweep gets the same"
    with progress.follow("job-0") as follower:
        texts = follower.read(PATIENCE).texts
    assert "late " not in [delta for text in texts for delta in text.deltas]


def test_without_redis_the_texts_of_lost_attempts_are_unknown() -> None:
    progress = Progress("unix:///nowhere.sock")
    assert progress.close_texts([("job-0", "1")]) == {}
    progress.close()
