"""Many share, or one is alone; whoever waits to be alone is not kept waiting for ever."""

from __future__ import annotations

import threading
from contextlib import ExitStack

from worker.gate import Gate


def enter(gate: Gate, *, alone: bool, entered: threading.Event, leave: threading.Event) -> None:
    with gate.alone() if alone else gate.shared():
        entered.set()
        leave.wait(10)


def start(gate: Gate, *, alone: bool) -> tuple[threading.Event, threading.Event]:
    entered, leave = threading.Event(), threading.Event()
    threading.Thread(
        target=enter, args=(gate,), kwargs={"alone": alone, "entered": entered, "leave": leave}
    ).start()
    return entered, leave


def test_many_share() -> None:
    gate = Gate()
    with ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(gate.shared())


def test_one_is_alone_and_goes_before_those_who_come_later() -> None:
    gate = Gate()
    first, first_leaves = start(gate, alone=False)
    assert first.wait(10)
    alone, alone_leaves = start(gate, alone=True)
    assert not alone.wait(0.05), "somebody is there"
    later, later_leaves = start(gate, alone=False)
    assert not later.wait(0.05), "somebody waits to be alone"
    first_leaves.set()
    assert alone.wait(10)
    assert not later.is_set()
    alone_leaves.set()
    assert later.wait(10)
    later_leaves.set()
