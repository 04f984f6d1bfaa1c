"""Counting queued jobs seldom, and exactly near a limit."""

from __future__ import annotations

import pytest

from jobs import queued_counts
from jobs.queued_counts import MARGIN, QueuedCounts


class Queue:
    """Counts how often it is counted."""

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.counted = 0

    def count(self) -> int:
        self.counted += 1
        return self.jobs


def test_far_from_the_limit_it_is_counted_once_and_near_it_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queued_counts, "MAX_AGE", 3600)
    counts, queue, limit = QueuedCounts(), Queue(10 * MARGIN), 12 * MARGIN
    admitted = 0
    while counts.admit(None, limit, queue.count):
        queue.jobs += 1
        admitted += 1
        if queue.jobs == limit - limit // 10:
            assert queue.counted == 1
    assert admitted == 2 * MARGIN
    queue.jobs -= 1
    assert counts.admit(None, limit, queue.count), "one has started"


def test_a_count_is_repeated_when_it_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queued_counts, "MAX_AGE", 0)
    counts, queue = QueuedCounts(), Queue(0)
    for _ in range(3):
        assert counts.admit(None, 100 * MARGIN, queue.count)
    assert queue.counted == 3
    queue.jobs = 100 * MARGIN
    assert not counts.admit(None, 100 * MARGIN, queue.count), "others have filled the queue"


def test_each_key_has_a_count_of_its_own() -> None:
    counts, empty, full = QueuedCounts(), Queue(0), Queue(2)
    assert counts.admit("a", 2, empty.count)
    assert not counts.admit("b", 2, full.count)
    assert counts.admit(None, 2, empty.count)
    assert counts.admit("a", 2, empty.count)


def test_old_counts_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queued_counts, "MAX_AGE", 0)
    monkeypatch.setattr(queued_counts, "MANY", 10)
    counts, queue = QueuedCounts(), Queue(0)
    for number in range(100):
        assert counts.admit(str(number), 2, queue.count)
    assert len(counts._counts) <= 11
