"""Lookups of several threads, together in one query."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest

from jobs import lookups
from jobs.lookups import Lookups

#: Seconds within which what is expected happens.
SOON = 30
CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid"}


class Query:
    """A query that takes until it is told to end."""

    def __init__(self, error: Exception | None = None) -> None:
        self.keys: list[list[str]] = []
        self.error = error
        self.begun = threading.Semaphore(0)
        self.end = threading.Semaphore(0)

    def run(self, keys: list[str]) -> dict[str, str]:
        self.keys.append(keys)
        self.begun.release()
        assert self.end.acquire(timeout=SOON)
        if self.error:
            raise self.error
        return {key: CAPITALS[key] for key in keys if key in CAPITALS}


def ask(
    executor: ThreadPoolExecutor, capitals: Lookups[str, str], *keys: str
) -> list[Future[str | None]]:
    """Look up keys in threads, each after the one before has begun to wait."""
    futures = []
    waiting: Any = capitals
    for key in keys:
        before = len(waiting._waiting)
        futures.append(executor.submit(capitals.get, key))
        give_up = time.monotonic() + SOON
        while len(waiting._waiting) == before:
            assert time.monotonic() < give_up
            time.sleep(0.001)  # nothing tells that a thread waits
    return futures


@pytest.fixture
def executor() -> Any:
    with ThreadPoolExecutor(10) as made:
        yield made


def test_lookups_that_arrive_while_a_query_runs_share_the_next_one(
    executor: ThreadPoolExecutor,
) -> None:
    query = Query()
    capitals = Lookups(query.run)
    first = executor.submit(capitals.get, "France")
    assert query.begun.acquire(timeout=SOON)
    others = ask(executor, capitals, "Italy", "Atlantis", "France", "Italy")
    query.end.release(2)
    assert first.result(SOON) == "Paris"
    assert [each.result(SOON) for each in others] == ["Rome", None, "Paris", "Rome"]
    assert query.keys == [["France"], ["Italy", "Atlantis", "France"]]
    query.end.release()
    assert capitals.get("Spain") == "Madrid"


def test_a_query_has_a_maximum_of_keys(
    executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lookups, "MAX_KEYS", 2)
    query = Query()
    capitals = Lookups(query.run)
    first = executor.submit(capitals.get, "France")
    assert query.begun.acquire(timeout=SOON)
    others = ask(executor, capitals, "Italy", "France", "Spain")
    query.end.release(3)
    assert first.result(SOON) == "Paris"
    assert [each.result(SOON) for each in others] == ["Rome", "Paris", "Madrid"]
    assert query.keys == [["France"], ["Italy", "France"], ["Spain"]]


def test_an_error_reaches_those_who_share_the_query_and_nobody_else(
    executor: ThreadPoolExecutor,
) -> None:
    query = Query()
    capitals = Lookups(query.run)
    first = executor.submit(capitals.get, "France")
    assert query.begun.acquire(timeout=SOON)
    others = ask(executor, capitals, "Italy", "Spain")
    query.end.release()
    assert first.result(SOON) == "Paris"
    assert query.begun.acquire(timeout=SOON)
    query.error = ValueError("broken")
    query.end.release()
    for each in others:
        with pytest.raises(ValueError, match="broken"):
            each.result(SOON)
    query.error = None
    query.end.release()
    assert capitals.get("Italy") == "Rome"
