"""`helixq bench readers`: the cost of live readers, against one reader."""

from __future__ import annotations

from dataclasses import asdict

import click

from cli.bench import common
from cli.fields import Command, Fields, json_fields

#: The number of open pages.
PAGES = 100


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
@common.seconds_option("--seconds", 10.0, "How long each case is measured.")
@json_fields(("machine", "results"))
def readers(count: int, pieces: int, seconds: float, fields: Fields | None) -> None:
    """Measure what readers of event streams cost the web.

    Every job gets ten messages a second. In one case, each text already has --pieces deltas. The last cases are 100
    open pages, of as many running jobs and of one, which also ask where their jobs stand.
    """
    from cli.bench import measure_readers

    cases = [
        (1, 1, 0, False),
        (count, count, 0, False),
        (count, 1, 0, False),
        (count, 1, pieces, False),
        (PAGES, PAGES, 0, True),
        (PAGES, 1, 0, True),
    ]
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
        "| of a core | delay, median | 99 of 100 |"
    )
    click.echo("|---|---|---|---|---|---|---|---|---|")
    for r in results:
        click.echo(
            f"| {r.readers}{' pages' if r.pages else ''} | {r.jobs} | {r.before:,} | {r.messages:,} "
            f"| {r.cost * 1000:.3f} | {r.cost / results[0].cost:.2f} | {r.core:.3f} | {r.median_delay * 1000:.1f} ms "
            f"| {r.late_delay * 1000:.1f} ms |"
        )
