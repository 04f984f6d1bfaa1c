"""`helixq bench track`: an idle job and many at once, against the recorded figures."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from cli.bench import common


@click.command()
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
@common.json_option
def track(jobs: int, idle_jobs: int, at_once: int, file: Path, record: bool, as_json: bool) -> None:
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
    if as_json:
        output = {"now": asdict(now), "recorded": asdict(recorded) if recorded else None}
        click.echo(json.dumps(output, indent=2))
    else:
        click.echo(figures.table(now, recorded))
    if record:
        now.write(file)
