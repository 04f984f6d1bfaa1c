"""`helixq bench soak`: whether a service under steady load grows."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from cli.bench import common
from cli.fields import Command, Fields, json_fields
from cli.statuses import ExitStatus

if TYPE_CHECKING:
    from cli.bench.measure_soak import Growth, Soak

#: How values with a unit are shown: by what they are divided, with how many digits, and what follows them.
_SHOWN = {"bytes": (1 << 20, 1, " MiB"), "seconds": (1e-3, 0, " ms"), "": (1, 1, "")}


@click.command(cls=Command)
@click.option(
    "--minutes",
    type=click.FloatRange(min=0.1),
    default=20.0,
    show_default=True,
    help="How long to ask.",
)
@click.option(
    "--share",
    type=click.FloatRange(min=0.01, max=1.0),
    default=0.8,
    show_default=True,
    help="Share of the capacity, which is measured first.",
)
@common.count_option("--slots", 64, "Slots of the worker.")
@common.count_option("--max-output-tokens", 256, "Maximum number of new tokens per stage.")
@click.option("--database-url", help="An empty database (default: SQLite).")
@common.seed_option
@json_fields(("machine", "soak"))
@click.pass_context
def soak(
    context: click.Context,
    minutes: float,
    share: float,
    slots: int,
    max_output_tokens: int,
    database_url: str | None,
    seed: int,
    fields: Fields | None,
) -> None:
    """Ask for a while at a share of the capacity, and say what grows.

    `helixq up` runs on the demo model with `helixq maintain` beside it. Clients ask at an even rate, which follows
    the speed of the machine; most of them poll, some read event streams, some cancel. Memory, threads, open
    files, connections and delays of the second half get a line by least squares. What rises more than noise
    grows, and makes the exit status 1.
    """
    from cli.bench import measure_soak

    with (
        common.temporary_folder() as folder,
        measure_soak.service(folder, slots, database_url) as parts,
    ):
        result = measure_soak.run(
            parts,
            slots=slots,
            share=share,
            minutes=minutes,
            max_output_tokens=max_output_tokens,
            seed=seed,
            on_progress=common.show_progress,
        )
    if fields:
        fields.print({"machine": common.machine(), "soak": asdict(result)})
    else:
        _show(result)
    if result.grown:
        context.exit(ExitStatus.FAILED)


def _show(soak: Soak) -> None:
    click.echo(
        f"demo, {soak.jobs:,} jobs in {soak.minutes:g} minutes: {soak.rate:.2f} a second, of a capacity of "
        f"{soak.capacity:.2f}; {common.machine()}."
    )
    speeds = ", ".join(f"{speed:.2f}" for speed in soak.speeds)
    click.echo(f"The machine's speed, by thirds: {speeds}; 1 while the capacity was measured.\n")
    click.echo("| part | | second half, mean | slope an hour (95% interval) | a job | grows |")
    click.echo("|---|---|---|---|---|---|")
    for growth in soak.growths:
        line = growth.trend
        low, high = _text(growth, line.low), _text(growth, line.high)
        per_job = f"{growth.per_job:,.0f} bytes" if growth.unit == "bytes" else ""
        click.echo(
            f"| {growth.part} | {growth.what} | {_text(growth, line.level)} "
            f"| {_text(growth, line.slope)} ({low} to {high}) | {per_job} | {'**yes**' if growth.grows else 'no'} |"
        )
    click.echo("\n| ms, by thirds | median | 99 of 100 within |")
    click.echo("|---|---|---|")
    for delays in soak.delays:
        medians, late = (
            ", ".join(f"{seconds * 1000:,.0f}" for seconds in values)
            for values in (delays.medians, delays.late)
        )
        click.echo(f"| {delays.what} | {medians} | {late} |")
    used = ", ".join(f"{part} {ms:.1f} ms" for part, ms in soak.processor.items())
    click.echo(
        f"\nFor each job: processor time of {used}; {soak.stored_per_job:,.0f} bytes in the database."
    )
    names = ", ".join(f"{growth.part}: {growth.what}" for growth in soak.grown)
    click.echo(f"What grows: {names or 'nothing'}.")


def _text(growth: Growth, value: float) -> str:
    divisor, digits, unit = _SHOWN[growth.unit]
    return f"{value / divisor:,.{digits}f}{unit}"
