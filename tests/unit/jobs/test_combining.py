"""Work of several threads, done together by one of them."""

from __future__ import annotations

import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest
from structlog.contextvars import get_contextvars

from jobs import combining, logs
from jobs.combining import Combiner

#: Seconds within which what is expected happens.
SOON = 30
CAPITALS = {"France": "Paris", "Italy": "Rome", "Spain": "Madrid"}


class Query:
    """Work that looks keys up, and takes until it is told to end."""

    def __init__(self) -> None:
        self.keys: list[list[str]] = []
        self.error: Exception | None = None
        self.begun = threading.Semaphore(0)
        self.end = threading.Semaphore(0)

    def run(self, keys: list[str]) -> list[str | Exception]:
        self.keys.append(keys)
        self.begun.release()
        assert self.end.acquire(timeout=SOON)
        if self.error:
            raise self.error
        return [CAPITALS.get(key) or KeyError(key) for key in keys]


def ask(
    executor: ThreadPoolExecutor, capitals: Combiner[str, str], *keys: str
) -> list[Future[str]]:
    """Look up keys in threads, each after the one before has begun to wait."""
    futures = []
    waiting: Any = capitals
    for key in keys:
        before = len(waiting._waiting)
        futures.append(executor.submit(capitals.do, key))
        give_up = time.monotonic() + SOON
        while len(waiting._waiting) == before:
            assert time.monotonic() < give_up
            time.sleep(0.001)  # nothing tells that a thread waits
    return futures


@pytest.fixture
def executor() -> Any:
    with ThreadPoolExecutor(10) as made:
        yield made


def test_what_arrives_while_work_runs_is_done_together_next(
    executor: ThreadPoolExecutor,
) -> None:
    query = Query()
    capitals: Combiner[str, str] = Combiner(query.run)
    first = executor.submit(capitals.do, "France")
    assert query.begun.acquire(timeout=SOON)
    others = ask(executor, capitals, "Italy", "France", "Italy")
    query.end.release(2)
    assert first.result(SOON) == "Paris"
    assert [each.result(SOON) for each in others] == ["Rome", "Paris", "Rome"]
    assert query.keys == [["France"], ["Italy", "France", "Italy"]]
    query.end.release()
    assert capitals.do("Spain") == "Madrid"


def test_there_is_a_maximum_of_items(
    executor: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(combining, "MAX_ITEMS", 2)
    query = Query()
    capitals: Combiner[str, str] = Combiner(query.run)
    first = executor.submit(capitals.do, "France")
    assert query.begun.acquire(timeout=SOON)
    others = ask(executor, capitals, "Italy", "France", "Spain")
    query.end.release(3)
    assert first.result(SOON) == "Paris"
    assert [each.result(SOON) for each in others] == ["Rome", "Paris", "Madrid"]
    assert query.keys == [["France"], ["Italy", "France"], ["Spain"]]


def test_an_error_of_the_work_reaches_those_who_share_it_and_nobody_else(
    executor: ThreadPoolExecutor,
) -> None:
    query = Query()
    capitals: Combiner[str, str] = Combiner(query.run)
    first = executor.submit(capitals.do, "France")
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
    assert capitals.do("Italy") == "Rome"


def test_an_error_of_an_item_reaches_its_thread_alone(executor: ThreadPoolExecutor) -> None:
    query = Query()
    capitals: Combiner[str, str] = Combiner(query.run)
    first = executor.submit(capitals.do, "France")
    assert query.begun.acquire(timeout=SOON)
    others = ask(executor, capitals, "Atlantis", "Italy", "Eldorado")
    query.end.release(2)
    assert first.result(SOON) == "Paris"
    assert [type(each.exception(SOON)) for each in others] == [KeyError, type(None), KeyError]
    assert others[1].result() == "Rome"


def test_the_work_knows_nothing_of_the_thread_that_does_it() -> None:
    def fields(items: list[str]) -> list[str]:
        return [str(get_contextvars()) for _ in items]

    with logs.bound(request_id="req_1"):
        assert Combiner(fields).do("anything") == "{}"
