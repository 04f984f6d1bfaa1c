"""Work of several threads, done together by one of them.

With hundreds of requests a second, several wait for the database at any time. A query costs about the same
for one row and for a dozen, and a commit the same for one new job and for many. So what arrives while some
work runs is done together afterwards, by one of the threads that wait. This is flat combining (Hendler,
Incze, Shavit, Tzafrir, 2010); databases do it as group commit.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Generic, TypeVar

#: Items that are done together. More wait for the next time.
MAX_ITEMS = 100

Item = TypeVar("Item")
Result = TypeVar("Result")


class Combiner(Generic[Item, Result]):
    """Collects items of work from several threads; one of them works on all that have come. Thread-safe."""

    def __init__(self, work: Callable[[list[Item]], Sequence[Result | Exception]]) -> None:
        """
        Args:
            work: does some items; returns the result of each in their order, or the exception that its
                thread is to raise. Only one thread at a time calls it, in an empty context: what a thread
                has bound to its context belongs to its own item alone.
        """
        self._work = work
        self._lock = threading.Lock()
        self._waiting: list[_Order[Item, Result]] = []
        self._running = False

    def do(self, item: Item) -> Result:
        """Have an item done by work that begins now or later; return its result.

        Raises:
            Exception: that of the item, or what ``work`` raised, in all threads that share it.
        """
        order: _Order[Item, Result] = _Order(item)
        with self._lock:
            self._waiting.append(order)
            works, self._running = not self._running, True
        if not works:
            order.woken.acquire()
        if not order.done:
            self._run(order)
        if order.error is not None:
            raise order.error
        return order.result

    def _run(self, own: _Order[Item, Result]) -> None:
        """Work for all that wait, then have one of those that came meanwhile do the same."""
        with self._lock:
            orders, self._waiting = self._waiting[:MAX_ITEMS], self._waiting[MAX_ITEMS:]
        results: Sequence[Result | BaseException]
        try:
            results = Context().run(self._work, [order.item for order in orders])
        except BaseException as error:  # noqa: BLE001 (all of them raise it)
            results = [error] * len(orders)
        with self._lock:
            following = self._waiting[0] if self._waiting else None
            self._running = following is not None
        if following is not None:
            following.woken.release()
        for order, result in zip(orders, results, strict=True):
            if isinstance(result, BaseException):
                order.error = result
            else:
                order.result = result
            order.done = True
            if order is not own:
                order.woken.release()


class _Order(Generic[Item, Result]):
    """An item that a thread wants done."""

    __slots__ = ("done", "error", "item", "result", "woken")

    result: Result

    def __init__(self, item: Item) -> None:
        self.item = item
        self.error: BaseException | None = None
        self.done = False
        # A lock costs less than an event.
        self.woken = threading.Lock()
        self.woken.acquire()
