"""How a child process starts."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator

import pytest

from cli import children
from cli.children import Child
from jobs.stop_signals import STOP_SIGNALS, StopSignals
from tests.polling import poll


@pytest.fixture(autouse=True)
def _restore() -> Iterator[None]:
    handlers = {number: signal.getsignal(number) for number in (*STOP_SIGNALS, signal.SIGUSR1)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_a_signal_to_the_group_counts_once_while_a_child_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A child that has no session of its own yet gets it too, and has the socket on which its parent counts signals."""
    monkeypatch.setattr(children, "die_with_parent", lambda: os.kill(os.getpid(), signal.SIGINT))
    child = Child("a child", [sys.executable, "-c", ""])
    with StopSignals(signal.SIGTERM, at_once=[signal.SIGINT]) as signals:
        child.start()
        signal.raise_signal(signal.SIGTERM)
        assert signals.wait()
        assert signals.count == 1, "only the parent's signal"
    assert poll(lambda: child.status, lambda status: status is not None) == 0


def test_a_child_blocks_no_signals() -> None:
    program = "import signal, sys; sys.exit(len(signal.pthread_sigmask(signal.SIG_BLOCK, [])))"
    child = Child("a child", [sys.executable, "-c", program])
    child.start()
    assert poll(lambda: child.status, lambda status: status is not None) == 0
