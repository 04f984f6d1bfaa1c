"""The threads that requests run on.

The thread that became idle last takes the next request: what it needs is still in the processor's caches.
Waitress's own dispatcher wakes the one that has been idle longest, which with hundreds of threads is a cold
one each time.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from contextvars import Context
from typing import Protocol

log = logging.getLogger(__name__)


class Task(Protocol):
    """A request that a thread serves."""

    def service(self) -> None: ...
    def cancel(self) -> None: ...


class Dispatcher:
    """A fixed number of threads."""

    def __init__(self, threads: int) -> None:
        self._lock = threading.Lock()
        self._tasks: deque[Task] = deque()
        #: Threads that wait for a task, as what wakes them.
        self._idle: list[_Wake] = []
        self._ending = False
        for number in range(threads):
            threading.Thread(target=self._run, name=f"web-{number}", daemon=True).start()

    def add_task(self, task: Task) -> None:
        """Have a thread serve a request as soon as one is idle."""
        with self._lock:
            if not self._idle:
                self._tasks.append(task)
                return
            wake = self._idle.pop()
        wake.up(task)

    @property
    def idle(self) -> int:
        """The number of threads that wait for a request."""
        return len(self._idle)

    def shutdown(self) -> None:
        """Cancel the tasks that no thread has begun, and end each thread as soon as it is idle."""
        with self._lock:
            self._ending = True
            tasks, self._tasks = self._tasks, deque()
            idle, self._idle = self._idle, []
        for task in tasks:
            task.cancel()
        for wake in idle:
            wake.up(None)

    def _run(self) -> None:
        wake = _Wake()
        while True:
            with self._lock:
                if self._ending:
                    return
                task = self._tasks.popleft() if self._tasks else None
                if task is None:
                    self._idle.append(wake)
            if task is None and (task := wake.wait()) is None:
                return
            # In a context of its own: what it binds to the lines of the log is forgotten with it.
            Context().run(_serve, task)


def _serve(task: Task) -> None:
    try:
        task.service()
    except BaseException:
        log.exception("a request could not be served")


class _Wake:
    """What gives an idle thread its next task. A lock costs less than a condition."""

    def __init__(self) -> None:
        self._given = threading.Lock()
        self._given.acquire()
        self._task: list[Task | None] = []

    def up(self, task: Task | None) -> None:
        """Give the thread a task, or end it."""
        self._task.append(task)
        self._given.release()

    def wait(self) -> Task | None:
        """Wait for a task; return None at the end."""
        self._given.acquire()
        return self._task.pop()
