"""`helixq bench lora`: extraction of adapters, against mergekit."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from cli.bench import common
from cli.errors import ExpectedError
from cli.fields import Command, Fields, json_fields


@click.command(cls=Command)
@click.option(
    "--mergekit",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The program mergekit-extract-lora (default: from the PATH).",
)
@common.count_option("--rank", 64, "Rank of the adapters.")
@common.seed_option
@json_fields(("machine", "rank", "results"))
def lora(mergekit: Path | None, rank: int, seed: int, fields: Fields | None) -> None:
    """Compare the extraction of adapters with mergekit.

    Both extract from one decoder layer of Mistral-7B's sizes.

    Install mergekit in a separate environment:
    python3 -m venv mk && mk/bin/pip install mergekit
    """
    from worker.bench import lora as module

    program = mergekit or shutil.which("mergekit-extract-lora")
    if program is None:
        raise ExpectedError(
            "the baseline mergekit-extract-lora is not on the PATH: install mergekit in a "
            "separate environment, and pass the program with --mergekit"
        )
    extractors = [
        module.helixq_extractor(),
        module.helixq_extractor("--exact"),
        module.mergekit(Path(program)),
    ]
    with common.temporary_folder() as folder:
        results = module.run(
            folder,
            extractors,
            rank=rank,
            seed=seed,
            on_progress=common.show_progress,
        )
    if fields:
        output = {
            "machine": common.machine(),
            "rank": rank,
            "results": [r.to_json() for r in results],
        }
        fields.print(output)
        return
    baseline = results[-1]
    click.echo(f"Rank {rank}, one decoder layer of Mistral-7B's sizes; {common.machine()}.\n")
    click.echo("| program | seconds | times as fast | peak memory | error, all layers | by layer |")
    click.echo("|---|---|---|---|---|---|")
    for result in results:
        low, high = min(result.errors.values()), max(result.errors.values())
        click.echo(
            f"| `{result.name}` | {result.seconds:.1f} | {baseline.seconds / result.seconds:.1f} "
            f"| {result.peak_bytes / 1e9:.2f} GB | {result.error:.4%} | {low:.4%}–{high:.4%} |"
        )
