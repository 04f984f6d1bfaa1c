"""The loop of background duties goes on when one fails, and ends when it is stopped."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from sqlalchemy.exc import OperationalError

from jobs import duties
from jobs.duties import Duty, DutyThread, repeat
from tests.servers import PATIENCE

#: An interval in seconds that no test waits for.
LONG = 3600.0


def run_until_stopped(*functions: Callable[[threading.Event], bool]) -> None:
    """Repeat duties until one of them sets the event that is passed to it."""
    stopped = threading.Event()
    repeat(
        [Duty(LONG, lambda duty=duty: duty(stopped)) for duty in functions],  # type: ignore[misc]  # a default
        stopped,
        poll=0.001,
    )


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            OperationalError("SELECT 1", {}, Exception("server closed the connection")),
            "the database does not respond: server closed the connection",
        ),
        (ValueError("wrong"), "a background duty failed"),
    ],
)
def test_a_failed_duty_is_retried_soon(
    error: Exception,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(duties, "RETRY_INTERVAL", 0.01)
    calls = 0

    def fail_once(stopped: threading.Event) -> bool:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise error
        stopped.set()
        return False

    run_until_stopped(fail_once)
    assert calls == 2
    assert [record.getMessage() for record in caplog.records] == [message]


def test_an_outage_does_not_fill_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of several duties that fail every second, a line every ten seconds."""
    now = 0.0
    monkeypatch.setattr(duties, "RETRY_INTERVAL", 0.0)
    monkeypatch.setattr("time.monotonic", lambda: now)

    def fail(stopped: threading.Event) -> bool:
        nonlocal now
        now += 0.5
        if now >= 25:
            stopped.set()
        raise OperationalError("SELECT 1", {}, Exception("terminated"))

    run_until_stopped(fail, fail)
    assert caplog.messages == ["the database does not respond: terminated"] * 3


@pytest.mark.parametrize(("fails", "interval"), [(False, 0.5), (True, LONG)])
def test_a_duty_is_called_at_its_interval_and_after_a_failure_each_second(
    monkeypatch: pytest.MonkeyPatch, fails: bool, interval: float
) -> None:
    now, calls = 0.0, 0
    stopped = threading.Event()

    def wait(seconds: float) -> bool:
        nonlocal now
        now += seconds
        return now >= 100

    def duty() -> bool:
        nonlocal calls
        calls += 1
        if fails:
            raise ValueError("wrong")
        return False

    monkeypatch.setattr("time.monotonic", lambda: now)
    monkeypatch.setattr(stopped, "wait", wait)
    repeat([Duty(interval, duty)], stopped, poll=0.01, jitter=0.2)
    assert (95 <= calls <= 101) if fails else (195 <= calls <= 255)


def test_a_failed_duty_does_not_stop_other_duties(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail(_: threading.Event) -> bool:
        raise ValueError("wrong")

    def succeed(stopped: threading.Event) -> bool:
        stopped.set()
        return False

    run_until_stopped(fail, succeed)
    assert len(caplog.records) == 1


def test_a_duty_with_more_to_do_is_called_again_at_once() -> None:
    calls = 0

    def busy(stopped: threading.Event) -> bool:
        nonlocal calls
        calls += 1
        if calls == 3:
            stopped.set()
        return True

    run_until_stopped(busy)
    assert calls == 3


def test_a_loop_that_is_stopped_before_it_starts_calls_nothing() -> None:
    stopped = threading.Event()
    stopped.set()
    calls: list[str] = []

    def duty() -> bool:
        calls.append("called")
        return False

    repeat([Duty(LONG, duty)], stopped, poll=LONG)
    assert calls == []


def test_stopping_the_thread_waits_for_the_running_duty() -> None:
    started, finished = threading.Event(), threading.Event()

    def slow() -> bool:
        started.set()
        assert thread.stopped.wait(PATIENCE)
        finished.set()
        return False

    thread = DutyThread("slow", [Duty(LONG, slow)], poll=0.001)
    thread.start()
    assert started.wait(10)
    thread.stop()
    assert finished.is_set()
