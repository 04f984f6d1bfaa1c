"""The signals that ask a process to stop."""

from __future__ import annotations

import ctypes
import signal
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from types import FrameType
from typing import Self

#: A request to terminate, Ctrl-C, and a closed terminal.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: Seconds in which threads that are in the C handler of a signal leave it.
SETTLE_TIME = 0.02


class StopSignals:
    """Counts the signals that ask the process to stop; once it has stopped, they are ignored.

    SIGHUP is always ignored in a process that was started so: `nohup` does that.

    The handler takes no lock, logs nothing and starts no thread. It runs between two instructions of the
    main thread, and a second signal interrupts the handler of the first, so a `threading.Event` could
    deadlock. A `SimpleQueue` is reentrant.
    """

    def __init__(
        self,
        *numbers: int,
        at_once: Sequence[int] = (),
        notify: Callable[[], object] | None = None,
    ) -> None:
        """
        Args:
            numbers: the signals. They are handled from `install` on.
            at_once: further signals, each of which counts as two.
            notify: called at each signal. It has to be reentrant, too.
        """
        self._numbers = (*numbers, *at_once)
        self._has_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._at_once = at_once
        self._notify = notify
        self._received: list[int] = []
        self._wake: SimpleQueue[None] = SimpleQueue()

    def __enter__(self) -> Self:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        self.ignore()

    def install(self) -> None:
        """Count signals from now on. Only the main thread can do this."""
        for number in self._numbers:
            is_ignored = number == signal.SIGHUP and self._has_nohup
            signal.signal(number, signal.SIG_IGN if is_ignored else self._handle)

    def ignore(self) -> None:
        """Ignore the signals from now on: nothing is left to stop.

        While Python shuts down, it restores the default of signals that have a handler, which is to end
        the process with another exit status. Ignored signals stay ignored.
        """
        # The system ignores them first. Otherwise Python could find no handler for one that has just arrived,
        # and would print "Signal … ignored due to race condition" with a traceback.
        libc = ctypes.CDLL(None)
        for number in self._numbers:
            libc.signal(number, ctypes.c_void_p(signal.SIG_IGN.value))
        time.sleep(SETTLE_TIME)  # Nothing tells when other threads have left Python's C handler.
        for number in self._numbers:
            signal.signal(number, signal.SIG_IGN)

    @property
    def count(self) -> int:
        """How many signals have been received: 1 asks to stop, 2 to stop at once."""
        return sum(2 if number in self._at_once else 1 for number in self._received)

    def wait(self, timeout: float | None = None, *, count: int = 1) -> bool:
        """Wait until ``count`` signals have been received. Only one thread may wait.

        Args:
            timeout: the maximum number of seconds; None for no maximum.
            count: the number of signals.

        Returns:
            whether they have been received.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.count < count:
            remaining = None if deadline is None else max(0.0, deadline - time.monotonic())
            try:
                self._wake.get(timeout=remaining)
            except Empty:
                break
        return self.count >= count

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._received.append(number)
        self._wake.put(None)
        if self._notify is not None:
            self._notify()
