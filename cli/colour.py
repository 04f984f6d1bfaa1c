"""Colours, for terminals only. `--color` decides, or NO_COLOR or FORCE_COLOR, or whether it is a terminal."""

from __future__ import annotations

import os
from typing import TextIO

import click

from jobs.pipeline import Role

PLAIN, DIM = "\x1b[0m", "\x1b[2m"
#: Bold cyan, yellow and green: legible on dark and on light, and told apart by colour-blind people.
ROLES = {Role.ACTOR: "\x1b[1;36m", Role.CRITIC: "\x1b[1;33m", Role.REGENERATOR: "\x1b[1;32m"}


def choice(given: str) -> bool | None:
    """Return whether there are colours by ``--color`` and the environment; None if that depends on the stream.

    Args:
        given: ``always``, ``never`` or ``auto``.
    """
    if given != "auto":
        return given == "always"
    if os.environ.get("NO_COLOR"):
        return False
    return True if os.environ.get("FORCE_COLOR", "0") != "0" else None


def enabled(stream: TextIO) -> bool:
    """Return whether a stream gets colours in the current command."""
    context = click.get_current_context(silent=True)
    if context is not None and context.color is not None:
        return context.color
    return stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
