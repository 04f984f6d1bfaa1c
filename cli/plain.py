"""Text that does nothing to a terminal: what commands show may quote what users, servers or files wrote."""

from __future__ import annotations

import re

import click

#: Control characters but for line breaks and tabs, overrides of the direction of writing, separators of lines that only
#: some programs know, and what is no character.
_ACTIVE = re.compile(
    "[\0-\x08\x0b-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufff9-\ufffb\ud800-\udfff]"
)


def printable(text: str) -> str:
    """Return a text whose control characters do nothing to a terminal."""
    return _ACTIVE.sub("\N{REPLACEMENT CHARACTER}", text)


def say(text: str, *, err: bool = False) -> None:
    """Print a line that may quote what others wrote."""
    click.echo(printable(text), err=err)
