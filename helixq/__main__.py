"""The program ``helixq``, which is also ``python -m helixq``."""

from __future__ import annotations

import helixq


def run() -> None:
    """Run the command that the arguments name; see `cli.__main__`."""
    helixq.find_packages()
    from cli.__main__ import run

    run()


if __name__ == "__main__":
    run()
