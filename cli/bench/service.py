"""`helixq bench service`: jobs an hour of the whole service, against the reference engine."""

from __future__ import annotations

import click

from cli.bench import common
from cli.fields import Command, Fields, json_fields


@click.command(cls=Command)
@common.count_option("--jobs", 256, "The number of jobs.")
@common.count_option(
    "--reference-jobs", 16, "The number of these jobs that run on the reference engine, too."
)
@common.count_option("--at-once", 64, "The number of jobs that are in the service at once.")
@common.count_option("--max-output-tokens", 256, "Maximum number of new tokens per stage.")
@common.seed_option
@json_fields(("machine", "results"))
def service(
    jobs: int,
    reference_jobs: int,
    at_once: int,
    max_output_tokens: int,
    seed: int,
    fields: Fields | None,
) -> None:
    """Compare `helixq up` with the reference engine alone.

    Whole jobs run through the service, over HTTP, and on the engine.
    """
    import torch

    from cli.bench import measure_service
    from jobs.pipeline import Sampling
    from jobs.settings import DEMO_CHECKPOINT
    from worker.bench.engine import run_reference
    from worker.bench.models import Model

    questions = common.demo_questions(jobs)

    common.show_progress(f"answering {reference_jobs} questions by the reference engine")
    sampling = Sampling(max_output_tokens=max_output_tokens, seed=seed)
    baseline = run_reference(
        Model.of(DEMO_CHECKPOINT),
        questions[:reference_jobs],
        sampling,
        torch.float32,
        torch.device("cpu"),
    )
    with common.temporary_folder() as folder:
        seconds, tokens = measure_service.run(
            folder,
            questions,
            at_once=at_once,
            max_output_tokens=max_output_tokens,
            seed=seed,
            on_progress=common.show_progress,
        )
    rows = [
        ("reference engine alone", 1, baseline.jobs_an_hour, baseline.tokens_a_second),
        ("service", at_once, jobs / seconds * 3600, tokens / seconds),
    ]
    if fields:
        keys = ("program", "at_once", "jobs_an_hour", "tokens_a_second")
        results = [dict(zip(keys, row, strict=True)) for row in rows]
        fields.print({"machine": common.machine(), "results": results})
        return
    click.echo(
        f"demo, {jobs} jobs, up to {max_output_tokens} new tokens a stage; {common.machine()}.\n"
    )
    click.echo("| program | at once | jobs an hour | times the reference | new tokens a second |")
    click.echo("|---|---|---|---|---|")
    for name, count, rate, speed in rows:
        times = rate / baseline.jobs_an_hour
        click.echo(f"| {name} | {count} | {rate:,.0f} | {times:.1f} | {speed:,.0f} |")
