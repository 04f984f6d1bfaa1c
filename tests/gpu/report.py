"""Writes JSON lines within a budget of seconds. A section that fails does not stop the others."""

from __future__ import annotations

import gc
import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

#: Characters of a traceback that are reported, from its end.
TRACEBACK_CHARACTERS = 1500


class Report:
    """Writes results to stdout and to a file, and keeps them for the tables."""

    def __init__(self, budget: float, file: Path | None) -> None:
        """
        Args:
            budget: seconds from now in which sections may start.
            file: gets the lines, too, if it is given.
        """
        self._start = time.monotonic()
        self._budget = budget
        self._file = file
        self.lines: list[dict[str, Any]] = []
        #: Whether a check failed, or could not be made.
        self.failed = False
        if file:
            file.write_text("", encoding="utf-8")

    @property
    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self._budget - (time.monotonic() - self._start)

    def say(self, **fields: Any) -> None:
        """Write a line; ``t`` is the time in seconds since the start."""
        fields["t"] = round(time.monotonic() - self._start, 1)
        self.lines.append(fields)
        line = json.dumps(fields)
        print(line, flush=True)
        if self._file:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(line + "\n")

    def section(self, name: str, need: float, run: Callable[[Report], None]) -> None:
        """Run a section if there is time for it, and free its memory.

        Args:
            name: for its lines.
            need: minimum seconds that it takes.
            run: measures or checks something, and reports it.
        """
        if self.left < need:
            self.say(section=name, skipped=f"{self.left:.0f} s left, it takes {need:.0f}")
            return
        start = time.monotonic()
        try:
            run(self)
        except Exception:  # noqa: BLE001 (whatever it is, the other sections go on)
            self.failed = True
            traceback.print_exc()  # all of it
            self.say(section=name, error=traceback.format_exc()[-TRACEBACK_CHARACTERS:])
        free()
        self.say(section=name, seconds=round(time.monotonic() - start, 1))


def free() -> None:
    """Free unused memory: engines and their threads refer to each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
