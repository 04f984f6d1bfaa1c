"""`helixq bench readers`: the cost of live readers, against one reader."""

from __future__ import annotations

from dataclasses import asdict

import click

from cli.bench import common
from cli.fields import Command, Fields, json_fields


@click.command(cls=Command)
@click.option(
    "--readers",
    "count",
    type=click.IntRange(min=1, max=200),
    default=200,
    show_default=True,
    help="The number of readers of all cases but the first.",
)
@common.count_option(
    "--pieces", 1000, "Deltas of each text before the last case begins.", minimum=0
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=10.0,
    show_default=True,
    help="How long each case is measured.",
)
@json_fields(("machine", "results"))
def readers(count: int, pieces: int, seconds: float, fields: Fields | None) -> None:
    """Measure what readers of event streams cost the web.

    Every job gets ten messages a second. In the last case, each text already has --pieces deltas.
    """
    from cli.bench import measure_readers

    cases = [(1, 1, 0), (count, count, 0), (count, 1, 0), (count, 1, pieces)]
    with common.temporary_folder() as folder:
        results = measure_readers.run(
            folder,
            cases,
            seconds=seconds,
            on_progress=common.show_progress,
        )
    if fields:
        output = {"machine": common.machine(), "results": [asdict(result) for result in results]}
        fields.print(output)
        return
    click.echo(
        f"{seconds:g} seconds each, ten messages a second of each job; {common.machine()}.\n"
    )
    click.echo(
        "| readers | jobs | deltas before | messages | processor ms a message | times one reader "
        "| delay, median | 99 of 100 |"
    )
    click.echo("|---|---|---|---|---|---|---|---|")
    for r in results:
        click.echo(
            f"| {r.readers} | {r.jobs} | {r.before:,} | {r.messages:,} | {r.cost * 1000:.3f} "
            f"| {r.cost / results[0].cost:.2f} | {r.median_delay * 1000:.1f} ms "
            f"| {r.late_delay * 1000:.1f} ms |"
        )
