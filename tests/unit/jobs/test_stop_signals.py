"""Signals that ask a process to stop."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from signal import SIG_IGN, SIGHUP, SIGUSR1, SIGUSR2

import pytest

from jobs.stop_signals import StopSignals
from tests.joining import join
from tests.servers import PATIENCE


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (SIGHUP, SIGUSR1, SIGUSR2)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_signals_are_counted_and_end_a_wait() -> None:
    with StopSignals(SIGUSR1, at_once=[SIGUSR2]) as signals:
        assert not signals.wait(0)
        threading.Timer(0.05, signal.pthread_kill, (threading.main_thread().ident, SIGUSR1)).start()
        assert signals.wait()
        assert signals.count == 1
        assert signals.wait(0), "it does not wait for another one"
        assert not signals.wait(0.01, count=2)
        signal.raise_signal(SIGUSR2)
        assert signals.wait(PATIENCE, count=3)


def test_another_thread_waits() -> None:
    with StopSignals(SIGUSR1) as signals:
        ended = threading.Event()

        def wait() -> None:
            signals.wait(count=2)
            ended.set()

        threading.Thread(target=wait, daemon=True).start()
        signal.raise_signal(SIGUSR1)
        assert not ended.is_set()
        signal.raise_signal(SIGUSR1)
        assert ended.wait(PATIENCE)


def test_each_signal_of_a_storm_counts() -> None:
    notified = []
    with StopSignals(SIGUSR1, notify=lambda: notified.append(1)) as signals:
        for _ in range(100):
            signal.raise_signal(SIGUSR1)
        assert signals.wait(PATIENCE, count=100)
    assert len(notified) == 100


def test_a_signal_that_another_thread_gets_counts_at_once() -> None:
    """The system may choose any thread, and does when a process that was stopped goes on."""
    ended = threading.Event()
    other = threading.Thread(target=ended.wait)
    other.start()
    with StopSignals(SIGUSR1) as signals:
        threading.Timer(0.05, signal.pthread_kill, (other.ident, SIGUSR1)).start()
        began_at = time.monotonic()
        assert signals.wait(PATIENCE)
        assert time.monotonic() - began_at < PATIENCE / 2
    ended.set()
    join(other)


def test_a_program_under_nohup_outlives_its_terminal() -> None:
    signal.signal(SIGHUP, SIG_IGN)
    with StopSignals(SIGHUP, SIGUSR1) as signals:
        signal.raise_signal(SIGHUP)
        signal.raise_signal(SIGUSR1)
        assert signals.wait(PATIENCE)
        assert signals.count == 1


def test_later_signals_are_ignored() -> None:
    with StopSignals(SIGUSR1, SIGUSR2) as signals:
        pass
    signal.raise_signal(SIGUSR1)
    signal.raise_signal(SIGUSR2)
    assert signals.count == 0
