"""`helixq bench`: measurements against a baseline in the same run."""

from __future__ import annotations

import json
import os
import platform
import shutil
import tempfile
from pathlib import Path
from typing import Any

import click

from cli.errors import ExpectedError


@click.group()
def bench() -> None:
    """Measure, against a baseline in the same run."""


@bench.command()
@click.option(
    "--mergekit",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The program mergekit-extract-lora; by default the one on the PATH.",
)
@click.option("--rank", type=click.IntRange(min=1), default=64, show_default=True)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
def lora(mergekit: Path | None, rank: int, seed: int, as_json: bool) -> None:
    """Extract adapters from layers of Mistral-7B's sizes: ours, ours --exact, and mergekit's.

    mergekit is not among our packages; install it in an environment of its own:
    python3 -m venv mk && mk/bin/pip install mergekit
    """
    from worker.bench import lora as module

    program = mergekit or shutil.which("mergekit-extract-lora")
    if program is None:
        raise ExpectedError(
            "the baseline mergekit-extract-lora is not on the PATH: install mergekit in an "
            "environment of its own, and name the program with --mergekit"
        )
    extractors = [module.ours(), module.ours("--exact"), module.mergekit(Path(program))]
    with tempfile.TemporaryDirectory(prefix="helixq-bench-") as folder:
        results = module.run(
            Path(folder),
            extractors,
            rank=rank,
            seed=seed,
            told=lambda text: click.echo(f"{text} …", err=True),
        )
    if as_json:
        found = {"machine": machine(), "rank": rank, "results": [r.to_json() for r in results]}
        click.echo(json.dumps(found, indent=2))
        return
    baseline = results[-1]
    click.echo(f"Rank {rank}, one decoder layer of Mistral-7B's sizes; {machine()}.\n")
    click.echo("| program | seconds | times as fast | peak memory | error, all layers | by layer |")
    click.echo("|---|---|---|---|---|---|")
    for result in results:
        low, high = min(result.errors.values()), max(result.errors.values())
        click.echo(
            f"| `{result.name}` | {result.seconds:.1f} | {baseline.seconds / result.seconds:.1f} "
            f"| {result.peak_bytes / 1e9:.2f} GB | {result.error:.4%} | {low:.4%}–{high:.4%} |"
        )


def machine() -> str:
    """Name what the numbers were measured on."""
    names: dict[str, Any] = {}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = dict(line.split(":", 1) for line in lines if ":" in line)
    except OSError:  # not Linux
        pass
    name = next((v.strip() for k, v in names.items() if k.startswith("model name")), "")
    return f"{os.cpu_count()} cores, {name or platform.processor() or platform.machine()}"
