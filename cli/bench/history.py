"""`helixq bench history`: lists, searches and writes with a million stored jobs, on both databases."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from cli.bench import common
from cli.fields import Command, Fields, json_fields

if TYPE_CHECKING:
    from cli.bench.measure_history import Result


@click.command(cls=Command)
@common.count_option("--jobs", 1_000_000, "Stored jobs.", minimum=1000)
@common.count_option("--pages", 40, "Pages to read of each list.")
@common.count_option("--writes", 400, "Jobs to write, with and without the index.", minimum=50)
@json_fields(("machine", "results"))
def history(jobs: int, pages: int, writes: int, fields: Fields | None) -> None:
    """Measure lists with filters, full-text search, single histories, and what the index costs writes.

    With a million jobs it needs up to 14 GB of disk for each database, and half an hour.
    """
    from cli.bench import measure_history

    with common.temporary_folder() as folder:
        results = measure_history.run(
            folder, jobs=jobs, pages=pages, writes=writes, on_progress=common.show_progress
        )
        if fields:
            measured = [asdict(result) for result in results]
            fields.print({"machine": common.machine(), "results": measured})
        else:
            click.echo(f"{jobs:,} jobs, {pages} pages of each list; {common.machine()}.\n")
            _print(results)


def _print(results: Iterable[Result]) -> None:
    """Print a table of each database, as soon as it is measured."""
    for result in results:
        click.echo(f"| {result.database} | median | 95 of 100 within | jobs a page |")
        click.echo("|---|---|---|---|")
        for row in result.reads:
            click.echo(
                f"| {row.name} | {row.median * 1000:.1f} ms | {row.late * 1000:.1f} ms | {row.found:.0f} |"
            )
        click.echo(
            f"\nA job's writes: {result.plain_write * 1000:.2f} ms without the index, "
            f"{result.indexed_write * 1000:.2f} ms with it ({result.indexed_write / result.plain_write:.2f} times); "
            f"indexing takes {result.indexing * 1000:.2f} ms a job. "
            f"Size: {result.size / 1e9:.1f} GB, of them {result.index_size / 1e9:.1f} GB for searches.\n"
        )
