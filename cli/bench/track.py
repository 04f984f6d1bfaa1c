"""`helixq bench track`: an idle job and many at once, against the recorded figures."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import click

from cli.bench import common
from cli.fields import Command, Fields, json_fields


@click.command(cls=Command)
@common.count_option("--jobs", 256, "The number of jobs.")
@common.count_option("--idle-jobs", 20, "The number of these that also run one at a time.")
@common.count_option("--at-once", 64, "The number of jobs that are in the service at once.")
@click.option(
    "--file",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path("docs/benchmarks.json"),
    show_default=True,
    help="The file of the recorded figures.",
)
@click.option("--record", is_flag=True, help="Record the figures of this run.")
@json_fields(("now", "recorded"))
def track(
    jobs: int, idle_jobs: int, at_once: int, file: Path, record: bool, fields: Fields | None
) -> None:
    """Compare the service with the recorded figures.

    Measures an idle job, and many jobs at once.
    """
    from cli.bench import figures

    if idle_jobs >= jobs:
        raise click.UsageError("--idle-jobs should be less than --jobs")
    recorded = figures.Figures.read(file)
    with common.temporary_folder() as folder:
        now = figures.measure(
            folder,
            common.demo_questions(jobs),
            idle_jobs=idle_jobs,
            at_once=at_once,
            machine=common.machine(),
            on_progress=common.show_progress,
        )
    if fields:
        output = {"now": asdict(now), "recorded": asdict(recorded) if recorded else None}
        fields.print(output)
    else:
        click.echo(figures.table(now, recorded))
    if record:
        now.write(file)
