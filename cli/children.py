"""A process that a command starts, watches and stops."""

from __future__ import annotations

import logging
import signal
import subprocess
import time
from contextlib import suppress
from functools import partial

from cli.errors import ExpectedError
from jobs.program import die_with_parent
from jobs.stop_signals import STOP_SIGNALS, StopSignals

log = logging.getLogger(__name__)

#: Seconds that a child may take to stop before it is killed.
STOP_TIMEOUT = 15.0
#: Seconds between checks whether a child runs, and whether one that starts is ready.
WATCH_INTERVAL, START_INTERVAL = 0.2, 0.05


def _begin(mask: set[int | signal.Signals]) -> None:
    """Forget the signals that a child got before it had a session of its own. It is called between fork and exec.

    Args:
        mask: the signals that its parent blocks.
    """
    die_with_parent()
    for number in STOP_SIGNALS:
        if (handler := signal.getsignal(number)) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_IGN)  # One that is pending is forgotten.
            signal.signal(number, handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


class Child:
    """A child process in its own session, so that Ctrl-C signals only the parent."""

    def __init__(self, name: str, command: list[str]) -> None:
        self.name = name
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, held: bool = False) -> None:
        """
        Args:
            held: its standard input stays open until `release`. Otherwise it ends at once.
        """
        # A Ctrl-C reaches a child that has no session of its own yet. It would be counted twice: until it runs its
        # program, the child writes to the same socket (`StopSignals`).
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
        try:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE if held else subprocess.DEVNULL,
                start_new_session=True,
                preexec_fn=partial(_begin, mask),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def release(self) -> None:
        """End its standard input."""
        if self._started.stdin is not None:
            self._started.stdin.close()

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"{self.name} was not started")
        return self._process

    @property
    def pid(self) -> int:
        return self._started.pid

    @property
    def status(self) -> int | None:
        """The exit status; None while it runs."""
        return self._started.poll()

    @property
    def reason(self) -> str:
        """Where to read why it exited."""
        return "the reason is logged above"

    def check_runs(self) -> None:
        """
        Raises:
            ExpectedError: it has ended.
        """
        if self.status is not None:
            raise ExpectedError(f"{self.name} exited with status {self.status}; {self.reason}")

    def recover(self) -> bool:
        """Remove what kept it from starting; return whether there was anything."""
        return False

    def signal(self, number: int) -> None:
        if self._process is not None and self.status is None:
            self._process.send_signal(number)

    def stop(self, signals: StopSignals) -> None:
        """Send SIGTERM, and wait for the end. A second Ctrl-C sends SIGTERM again, which stops a worker at once."""
        if self._process is None or self.status is not None:
            return
        sent, deadline = 0, time.monotonic() + STOP_TIMEOUT
        while self.status is None and time.monotonic() < deadline:
            # The second signal may have come while another part was stopping.
            if sent < max(1, min(signals.count, 2)):
                sent += 1
                self.signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(WATCH_INTERVAL)
        if self.status is None:
            log.warning("%s does not stop; killing it", self.name)
            self.signal(signal.SIGKILL)
            self._process.wait()
