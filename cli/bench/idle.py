"""`helixq bench idle`: the latency of an idle service, against the engine alone."""

from __future__ import annotations

import click

from cli.bench import common
from cli.fields import Command, Fields, json_fields


@click.command(cls=Command)
@common.count_option("--jobs", 30, "The number of jobs, one at a time.")
@common.count_option("--max-output-tokens", 256, "Maximum number of new tokens per stage.")
@common.count_option("--old", 100_000, "The number of ended jobs in the database of the sweep.")
@common.seed_option
@json_fields(("machine", "jobs", "seconds"))
def idle(jobs: int, max_output_tokens: int, old: int, seed: int, fields: Fields | None) -> None:
    """Measure the latency that an idle service adds to a job.

    The engine alone and the service answer each question in turn, on SQLite. A sweep is
    measured, too, over --old ended jobs, and over none.
    """
    import statistics

    from cli.bench import measure_idle

    questions = common.demo_questions(jobs + 1)
    with common.temporary_folder() as folder:
        service_folder, empty_folder, old_folder = (
            folder / name for name in ("service", "none", "old")
        )
        for path in (service_folder, empty_folder, old_folder):
            path.mkdir()
        times = measure_idle.jobs(
            service_folder,
            questions,
            max_output_tokens=max_output_tokens,
            seed=seed,
            on_progress=common.show_progress,
        )
        common.show_progress(f"sweeping {old} ended jobs")
        sweeps = [measure_idle.sweep(empty_folder, 0), measure_idle.sweep(old_folder, old)]
    seconds = {
        "engine_alone": statistics.median(engine_alone for engine_alone, _ in times),
        "service": statistics.median(served for _, served in times),
        "machinery": statistics.median(served - engine_alone for engine_alone, served in times),
        "sweep_without_history": sweeps[0],
        "sweep": sweeps[1],
    }
    if fields:
        fields.print({"machine": common.machine(), "jobs": jobs, "seconds": seconds})
        return
    click.echo(f"demo, {jobs} jobs one at a time; {common.machine()}.\n")
    click.echo("| median | ms |")
    click.echo("|---|---|")
    for text, key in (
        ("a job's three stages, the engine alone", "engine_alone"),
        ("a job from stored to answered, the service", "service"),
        ("difference: what the service adds", "machinery"),
        ("an idle sweep, no history", "sweep_without_history"),
        (f"an idle sweep, {old:,} ended jobs", "sweep"),
    ):
        click.echo(f"| {text} | {seconds[key] * 1000:.2f} |")
