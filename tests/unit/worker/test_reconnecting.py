"""Calls are repeated until a server responds, an error is not transient, or the process stops."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest

from jobs.throttle import Throttle
from tests.joining import join
from tests.servers import PATIENCE
from worker.reconnecting import retry

log = logging.getLogger(__name__)


def is_timeout(error: BaseException) -> bool:
    return isinstance(error, TimeoutError)


class Server:
    """Fails a number of times, then responds."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.failures = failures
        self.error = error
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.failures:
            raise self.error
        return "response"


def call(server: Server, **options: Any) -> str:
    delays = {"min_delay": 0.001, "max_delay": 0.002}
    return retry(
        server, is_transient=is_timeout, log=log, message="waiting", **{**delays, **options}
    )


def test_calls_are_repeated_until_the_server_responds(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(3, TimeoutError("no answer"))
    assert call(server) == "response"
    assert [record.getMessage() for record in caplog.records] == ["waiting: no answer"] * 3


def test_an_error_that_is_not_transient_is_raised(caplog: pytest.LogCaptureFixture) -> None:
    server = Server(1, ValueError("wrong"))
    with pytest.raises(ValueError, match="wrong"):
        call(server)
    assert (server.calls, caplog.records) == (1, [])


def test_warnings_are_no_more_frequent_than_their_interval(
    caplog: pytest.LogCaptureFixture,
) -> None:
    assert call(Server(5, TimeoutError("no answer")), throttle=Throttle(600)) == "response"
    assert len(caplog.records) == 1


def test_stopping_ends_a_delay_at_once_and_raises_the_error() -> None:
    stopping, called = threading.Event(), threading.Event()
    error = TimeoutError("no answer")

    def fail() -> None:
        called.set()
        raise error

    def stop() -> None:
        called.wait(PATIENCE)
        stopping.set()

    stopper = threading.Thread(target=stop)
    stopper.start()
    start = time.monotonic()
    with pytest.raises(TimeoutError) as raised:
        retry(
            fail,
            is_transient=is_timeout,
            log=log,
            message="waiting",
            min_delay=100,
            max_delay=200,
            stopping=stopping,
        )
    join(stopper)
    assert raised.value is error
    assert time.monotonic() - start < 50


def test_while_stopping_a_call_may_still_succeed() -> None:
    stopping = threading.Event()
    stopping.set()
    assert call(Server(0, TimeoutError()), stopping=stopping) == "response"
