"""The threads that requests run on."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from jobs import logs
from web.dispatcher import Dispatcher

log = logging.getLogger(__name__)

#: Seconds within which what is expected happens.
SOON = 30


class Request:
    """A request that takes until it is told to end, and then may fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self._error = error
        self.begun = threading.Event()
        self.end = threading.Event()
        self.thread = ""
        self.cancelled = False

    def service(self) -> None:
        self.thread = threading.current_thread().name
        self.begun.set()
        assert self.end.wait(SOON)
        if self._error:
            raise self._error

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture
def dispatchers() -> Iterator[Callable[[int], Dispatcher]]:
    """Make dispatchers, whose threads end with the test."""
    made: list[Dispatcher] = []

    def make(threads: int) -> Dispatcher:
        made.append(Dispatcher(threads))
        return made[-1]

    yield make
    for each in made:
        each.shutdown()


def wait_for_idle(dispatcher: Dispatcher, threads: int) -> None:
    give_up = time.monotonic() + SOON
    while dispatcher.idle < threads:
        assert time.monotonic() < give_up
        time.sleep(0.001)  # nothing tells when a thread is idle


def served(dispatcher: Dispatcher, request: Request) -> str:
    """Have a request served to its end; return the thread that did it."""
    request.end.set()
    dispatcher.add_task(request)
    assert request.begun.wait(SOON)
    return request.thread


def test_the_thread_that_became_idle_last_takes_the_next_request(
    dispatchers: Callable[[int], Dispatcher],
) -> None:
    dispatcher = dispatchers(3)
    threads = set()
    for _ in range(5):
        wait_for_idle(dispatcher, 3)
        threads.add(served(dispatcher, Request()))
    assert len(threads) == 1


def test_requests_wait_while_no_thread_is_idle(
    dispatchers: Callable[[int], Dispatcher],
) -> None:
    dispatcher = dispatchers(2)
    requests = [Request() for _ in range(4)]
    for request in requests:
        dispatcher.add_task(request)
    assert all(request.begun.wait(SOON) for request in requests[:2])
    requests[1].end.set()
    assert requests[2].begun.wait(SOON)
    assert requests[2].thread == requests[1].thread
    assert not requests[3].begun.is_set()
    for request in requests:
        request.end.set()
    assert requests[3].begun.wait(SOON)


def test_a_thread_outlives_the_failure_of_a_request(
    dispatchers: Callable[[int], Dispatcher], caplog: pytest.LogCaptureFixture
) -> None:
    dispatcher = dispatchers(1)
    served(dispatcher, Request(ValueError("broken")))
    served(dispatcher, Request())
    assert "ValueError: broken" in caplog.text


def test_requests_that_wait_are_cancelled_at_the_end_and_threads_end() -> None:
    before = set(threading.enumerate())
    dispatcher = Dispatcher(1)
    first, second = Request(), Request()
    for request in (first, second):
        dispatcher.add_task(request)
    assert first.begun.wait(SOON)
    idle = Dispatcher(2)
    wait_for_idle(idle, 2)
    threads = set(threading.enumerate()) - before
    assert len(threads) == 3
    dispatcher.shutdown()
    idle.shutdown()
    first.end.set()
    for thread in threads:
        thread.join(SOON)
        assert not thread.is_alive()
    assert (first.cancelled, second.cancelled, second.begun.is_set()) == (False, True, False)


def test_what_a_request_binds_to_the_log_is_forgotten_with_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Its own lines have it to the last one."""
    caplog.handler.setFormatter(logs.formatter("json", "web"))

    class Binding(Request):
        def service(self) -> None:
            if self._error:
                logs.begin(request_id="req_1")
            log.error("served")
            super().service()

    dispatcher = Dispatcher(1)
    for request in (Binding(ValueError()), Binding()):
        served(dispatcher, request)
        wait_for_idle(dispatcher, 1)
    lines = [json.loads(line) for line in caplog.text.splitlines()]
    assert [(line["message"], line.get("request_id")) for line in lines] == [
        ("served", "req_1"),
        ("a request could not be served", "req_1"),
        ("served", None),
    ]
    dispatcher.shutdown()
