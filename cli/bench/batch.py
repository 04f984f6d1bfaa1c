"""`helixq bench batch`: how long a batch takes to be accepted."""

from __future__ import annotations

from dataclasses import asdict

import click

from cli.bench.common import machine, show_progress, temporary_folder
from cli.fields import Command, Fields, json_fields


@click.command(cls=Command)
@click.option(
    "--lines",
    type=click.IntRange(min=1, max=50_000),
    default=50_000,
    show_default=True,
    help="Lines of the batch.",
)
@click.option(
    "--line-bytes",
    type=click.IntRange(min=1, max=4096),
    default=1,
    help="Minimum size of a line in bytes; shorter questions are repeated to reach it.",
)
@click.option("--database-url", help="An empty database (default: SQLite).")
@json_fields(("machine", "batch"))
def batch(lines: int, line_bytes: int, database_url: str | None, fields: Fields | None) -> None:
    """Measure how long `helixq up` takes to accept a batch, from its first byte to its last valid line."""
    from cli.bench import measure_batch

    with temporary_folder() as folder:
        result = measure_batch.run(
            folder,
            lines=lines,
            line_bytes=line_bytes,
            database_url=database_url,
            on_progress=show_progress,
        )
    if fields:
        fields.print({"machine": machine(), "batch": asdict(result)})
        return
    click.echo(f"A batch through `helixq up` on the demo's model; {machine()}.\n")
    click.echo("| lines | MiB | upload | validation | memory of the web | of the worker |")
    click.echo("|---|---|---|---|---|---|")
    click.echo(
        f"| {result.lines:,} | {result.bytes / (1 << 20):.1f} | {result.upload:.1f} s "
        f"| {result.validation:.1f} s | +{result.web_growth >> 20} MiB | +{result.worker_growth >> 20} MiB |"
    )
