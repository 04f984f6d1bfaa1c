"""A program on a terminal of its own, as a person has one."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
import threading
import time
from collections.abc import Mapping, Sequence

from tests.servers import PATIENCE

#: What a terminal sends around a text that is pasted.
PASTE_BEGINS, PASTE_ENDS = "\x1b[200~", "\x1b[201~"
CTRL_C, CTRL_D, ENTER, LEFT = "\x03", "\x04", "\r", "\x1b[D"


class Terminal:
    """A program whose standard streams are a terminal."""

    def __init__(
        self, command: Sequence[str], environ: Mapping[str, str], columns: int = 80
    ) -> None:
        self._controller, terminal = pty.openpty()
        fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self._popen = subprocess.Popen(
            command,
            # It does not ask where the cursor is, since nobody would tell it.
            env={**environ, "TERM": "xterm-256color", "PROMPT_TOOLKIT_NO_CPR": "1"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(terminal)
        self._news = threading.Condition()
        self._output = ""
        self._read_until = 0
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        data = b""
        while True:
            try:
                piece = os.read(self._controller, 65536)
            except OSError:  # The program has ended.
                os.close(self._controller)
                return
            data += piece
            with self._news:
                self._output = data.decode(errors="replace")
                self._news.notify_all()

    def type(self, text: str) -> None:
        """Type a text."""
        os.write(self._controller, text.encode())

    def wait_for(self, text: str) -> str:
        """Wait until a text was shown after the last one that was waited for; return what came before it."""

        def place() -> int:
            return self._output.find(text, self._read_until)

        with self._news:
            if not self._news.wait_for(lambda: place() >= 0, PATIENCE):
                raise AssertionError(f"no {text!r} in {self._output[self._read_until :]!r}")
            before = self._output[self._read_until : place()]
            self._read_until = place() + len(text)
            return before

    @property
    def output(self) -> str:
        """All that was written to it."""
        return self._output

    def close(self) -> None:
        """End the program if it has not ended."""
        self._popen.kill()
        self._popen.wait(PATIENCE)
        self._reader.join(PATIENCE)

    def wait(self) -> int:
        """Wait for the end; return the exit status."""
        deadline = time.monotonic() + PATIENCE
        status = self._popen.wait(PATIENCE)
        self._reader.join(deadline - time.monotonic())
        return status
