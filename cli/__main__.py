"""The program ``helixq``, which is also ``python -m cli``."""

from __future__ import annotations

import io
import os
import signal
import sys
from contextlib import suppress


def run() -> None:
    """Run the command that the arguments name.

    Python raises `KeyboardInterrupt` at a Ctrl-C, wherever it is. Commands handle that. Before and after them,
    it would print a traceback, so the signal has its default effect there: it ends the process silently.
    """
    interrupts = signal.getsignal(signal.SIGINT)
    if interrupts is signal.default_int_handler:  # A shell's background jobs ignore the signal.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    from cli.main import main

    _open_missing_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Characters that the locale's encoding lacks are escaped, as on standard error.
        with suppress(OSError):  # Another process has used the stream as a file.
            sys.stdout.reconfigure(errors="backslashreplace")
    signal.signal(signal.SIGINT, interrupts)
    try:
        main(prog_name="helixq")
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


def _open_missing_streams() -> None:
    """Open what the caller has closed, as some supervisors do: Python has None for it."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(os.open(os.devnull, os.O_RDWR), mode, encoding="utf-8"))


if __name__ == "__main__":
    run()
