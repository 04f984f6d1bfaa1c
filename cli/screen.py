"""A terminal with one live line beneath the text that is written.

The text goes to standard output, the live line to the terminal of standard error. Nothing but the text is written
where standard error is no terminal.

A program that reads the text may write it to the same terminal, as ``tee`` does. While there is a live line, it gets
whole lines: the live line would erase the beginning of one that is not whole.
"""

from __future__ import annotations

import os
import shutil
import sys
import threading

from wcwidth import wcwidth

from cli import colour
from cli.colour import DIM, PLAIN
from cli.plain import printable

#: Of a terminal that does not know its width.
DEFAULT_COLUMNS = 80
ERASE_LINE = "\r\x1b[2K"
ERASE_BELOW = "\x1b[J"
#: Makes sure that there is a line below, keeps the cursor's place, and goes to the start of that line. IND keeps the
#: column and scrolls at the bottom; what is saved before it would be the wrong row then.
GO_BELOW = "\x1bD\x1b[A\x1b7\x1b[B\r"
GO_BACK = "\x1b8"


class Screen:
    """Standard output and standard error. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._line = ""
        self._keeps_end = False
        self._is_shown = False
        #: The beginning of a line for a program, of which the end has not come yet.
        self._begun = ""
        #: The column after the text that was written last.
        self._column = 0
        is_terminal = os.environ.get("TERM", "dumb") != "dumb"
        #: Whether there is a live line.
        self.is_live = is_terminal and sys.stderr.isatty()
        #: Whether texts are read by a person, and not by a program.
        self.shows_text = sys.stdout.isatty()
        self._has_colours = colour.enabled(sys.stdout)

    def write(self, text: str) -> None:
        """Write text to standard output. On a terminal, control characters are replaced."""
        with self._lock:
            if not self.shows_text:
                self._write_lines(text)
                return
            self._write_with_line(printable(text))

    def label(self, text: str, style: str) -> None:
        """Write a label of a text, with an escape sequence for its colour where there are colours."""
        with self._lock:
            before, after = (style, PLAIN) if self._has_colours else ("", "")
            if not self.shows_text:
                self._write_lines(f"{before}{text}{after}")
                return
            self._write_with_line(text, before, after)

    def show(self, line: str, *, keeps_end: bool = False) -> None:
        """Show a live line in place of the one before.

        Args:
            line: to show.
            keeps_end: whether the beginning is cut off where it is too long, and not the end.
        """
        with self._lock:
            if not self.is_live or line == self._line:
                return
            self._line, self._keeps_end = line, keeps_end
            if self.shows_text:
                self._write_with_line("")
            else:
                sys.stderr.write(f"{ERASE_LINE}{self._fitted()}")
                sys.stderr.flush()
                self._is_shown = True

    def note(self, message: str) -> None:
        """Write a line to standard error that stays."""
        line = self._line
        self.hide()
        with self._lock:
            if self.shows_text and sys.stderr.isatty() and self._column:
                sys.stdout.write("\n")
                sys.stdout.flush()
                self._column = 0
            sys.stderr.write(f"{printable(message)}\n")
            sys.stderr.flush()
        self.show(line, keeps_end=self._keeps_end)

    def hide(self) -> None:
        """Take the live line away."""
        with self._lock:
            self._line = ""
            self._erase()
            if self._begun:
                sys.stdout.write(self._begun)
                sys.stdout.flush()
                self._begun = ""

    def _write_lines(self, text: str) -> None:
        """Write text for a program."""
        text = self._begun + text
        end = text.rfind("\n") + 1 if self.is_live else len(text)
        text, self._begun = text[:end], text[end:]
        if text:
            self._erase()
            sys.stdout.write(text)
            sys.stdout.flush()

    def _erase(self) -> None:
        if self._is_shown:
            stream = sys.stdout if self.shows_text else sys.stderr
            stream.write(self._erased())
            stream.flush()
            self._is_shown = False

    def _write_with_line(self, text: str, before: str = "", after: str = "") -> None:
        """Write text and the live line at once, so that the terminal shows both or neither.

        Args:
            text: to write.
            before, after: escape sequences around it.
        """
        erased = self._erased()
        self._advance(text)
        sys.stdout.write(f"{erased}{before}{text}{after}{self._below()}")
        sys.stdout.flush()

    def _erased(self) -> str:
        if not self._is_shown:
            return ""
        return ERASE_BELOW if self.shows_text else ERASE_LINE

    def _below(self) -> str:
        """Return what draws the live line beneath the cursor, which stays where it is."""
        columns = self._columns()
        # In the last column the next character belongs to the next line, and a moved cursor forgets that.
        self._is_shown = bool(self._line) and self.is_live and self._column < columns - 1
        if not self._is_shown:
            return ""
        if not self._column:  # The cursor is at the start of an empty line, which is free.
            return f"\x1b7{self._fitted()}{GO_BACK}"
        return f"{GO_BELOW}{self._fitted()}{GO_BACK}"

    def _columns(self) -> int:
        """Return the width of the terminal."""
        if self.shows_text:
            return shutil.get_terminal_size().columns
        return os.get_terminal_size(sys.stderr.fileno()).columns or DEFAULT_COLUMNS

    def _fitted(self) -> str:
        columns = self._columns()
        line = printable(self._line)
        if len(line) >= columns:
            line = f"…{line[2 - columns :]}" if self._keeps_end else f"{line[: columns - 2]}…"
        return f"{DIM}{line}{PLAIN}"

    def _advance(self, text: str) -> None:
        columns = self._columns()
        for c in text:
            if c == "\n":
                self._column = 0
                continue
            width = 8 - self._column % 8 if c == "\t" else max(wcwidth(c), 0)
            self._column = (
                width if self._column + width > columns else min(self._column + width, columns)
            )
