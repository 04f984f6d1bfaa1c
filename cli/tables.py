"""Tables of rows, and numbers and times in sentences."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable

from wcwidth import wcswidth, wcwidth

from cli.plain import say


def print_table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print rows below the heads of their columns."""
    table = [heads, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        say("  ".join(cells).rstrip())


def count(number: int, name: str, plural: str | None = None) -> str:
    """Return a number of things; ``plural`` is their name, if that is not ``name`` with an s."""
    return f"{number} {name}" if number == 1 else f"{number} {plural or f'{name}s'}"


def fitted(text: str, columns: int) -> str:
    """Return a line of text, or its beginning and an ellipsis if it is wider than some columns of a terminal."""
    if wcswidth(text) <= columns:
        return text
    width, end = 0, 0
    while end < len(text) and width + max(wcwidth(text[end]), 0) < columns:
        width += max(wcwidth(text[end]), 0)
        end += 1
    return f"{text[:end].rstrip()}…"


def minute(time: dt.datetime | None) -> str:
    """Return a time for the table, in UTC."""
    return "-" if time is None else f"{time:%Y-%m-%d %H:%M}Z"
