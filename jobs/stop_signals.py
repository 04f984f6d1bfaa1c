"""The signals that ask a process to stop."""

from __future__ import annotations

import ctypes
import logging
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Self

from jobs import stacks

log = logging.getLogger(__name__)

#: A request to terminate, Ctrl-C, and a closed terminal.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
#: Has a process log what its threads are doing.
STACKS_SIGNAL = signal.SIGUSR1
#: Seconds in which threads that are in the C handler of a signal leave it.
SETTLE_TIME = 0.02


class StopSignals:
    """Counts the signals that ask the process to stop; once it has stopped, they are ignored.

    `STACKS_SIGNAL` does not stop it: the log says what the threads are doing.

    SIGHUP is always ignored in a process that was started so: `nohup` does that.

    A thread counts them, and no handler. Python calls handlers on the main thread only, once that runs. The system
    may deliver a signal to any thread, and the main one sleeps on if it waits for a lock or another thread: so it
    often is when a process that was stopped by SIGSTOP or Ctrl-Z goes on. But whichever thread gets the signal, Python
    writes its number to a file descriptor at once (`signal.set_wakeup_fd`).
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
            notify: called at each signal, on another thread than the main one.
        """
        self._counted = (*numbers, *at_once)
        self._numbers = {*self._counted, STACKS_SIGNAL}
        self._has_nohup = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        self._at_once = at_once
        self._notify = notify
        self._received: list[int] = []
        self._news = threading.Condition()

    def __enter__(self) -> Self:
        self.install()
        return self

    def __exit__(self, *_: object) -> None:
        self.ignore()

    def install(self) -> None:
        """Count signals from now on. Only the main thread can do this, and a process has one of these at a time."""
        reader, writer = socket.socketpair()
        writer.setblocking(False)
        threading.Thread(
            target=self._read, args=(reader, writer), name="signals", daemon=True
        ).start()
        # Should it be full, there have been more signals than anybody waits for.
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in self._numbers:
            is_ignored = number == signal.SIGHUP and self._has_nohup
            signal.signal(number, signal.SIG_IGN if is_ignored else _do_nothing)

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
        # The sockets stay open: a thread may be about to write to them.
        signal.set_wakeup_fd(-1)

    @property
    def count(self) -> int:
        """How many signals have been received: 1 asks to stop, 2 to stop at once."""
        return sum(2 if number in self._at_once else 1 for number in self._received)

    def wait(self, timeout: float | None = None, *, count: int = 1) -> bool:
        """Wait until ``count`` signals have been received.

        Args:
            timeout: the maximum number of seconds; None for no maximum.
            count: the number of signals.

        Returns:
            whether they have been received.
        """
        with self._news:
            return self._news.wait_for(lambda: self.count >= count, timeout)

    def _read(self, reader: socket.socket, _writer: socket.socket) -> None:
        """Count what Python writes for each signal. The thread keeps both sockets open."""
        while True:
            for number in reader.recv(1024):
                if number in self._counted:
                    self._count(number)
                elif number == STACKS_SIGNAL:  # Others may have handlers, too.
                    for stack in stacks.describe():
                        log.info("%s", stack)

    def _count(self, number: int) -> None:
        with self._news:
            self._received.append(number)
            self._news.notify_all()
        if self._notify is not None:
            self._notify()


def _do_nothing(_number: int, _frame: FrameType | None) -> None:
    """Handle a signal: Python writes the numbers only of those that have a handler."""
