"""What commands on the database share: the database, and tables of rows."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import click

import migrations
from jobs.database import Database
from jobs.settings import Settings


@contextmanager
def open_database(settings: Settings) -> Iterator[Database]:
    """Open the database of the settings, and close it at the end of the block.

    Raises:
        migrations.SchemaError: its schema is not at the latest revision.
    """
    database = Database(settings.database)
    try:
        migrations.check(database.engine)
        yield database
    finally:
        database.close()


def print_table(heads: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    """Print rows below the heads of their columns."""
    table = [heads, *rows]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def count(number: int, name: str, plural: str | None = None) -> str:
    """Return a number of things; ``plural`` is their name, if that is not ``name`` with an s."""
    return f"{number} {name}" if number == 1 else f"{number} {plural or f'{name}s'}"


def minute(time: dt.datetime | None) -> str:
    """Return a time for the table, in UTC."""
    return "-" if time is None else f"{time:%Y-%m-%d %H:%M}Z"
