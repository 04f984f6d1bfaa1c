"""The program ``helixq``, which is also ``python -m cli``."""

from __future__ import annotations

import signal


def run() -> None:
    """Run the command that the arguments name.

    Python raises `KeyboardInterrupt` at a Ctrl-C, wherever it is. Commands handle that. Before and after them,
    it would print a traceback, so the signal has its default effect there: it ends the process silently.
    """
    interrupts = signal.getsignal(signal.SIGINT)
    if interrupts is signal.default_int_handler:  # A shell's background jobs ignore the signal.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    from cli.main import main

    signal.signal(signal.SIGINT, interrupts)
    try:
        main(prog_name="helixq")
    finally:
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            signal.signal(signal.SIGINT, signal.SIG_DFL)


if __name__ == "__main__":
    run()
