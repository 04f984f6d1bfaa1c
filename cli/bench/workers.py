"""`helixq bench workers`: jobs an hour by the number of workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.bench import common
from cli.fields import Command, Fields, json_fields
from cli.outputs import check_picture

if TYPE_CHECKING:
    from cli.bench.measure_workers import Result


@click.command(cls=Command)
@click.option(
    "--workers",
    "simulated",
    default="1,2,4,8",
    show_default=True,
    callback=common.numbers,
    metavar="N,N,…",
    help="Numbers of workers with a simulated GPU each.",
)
@click.option(
    "--demo-workers",
    "demo",
    callback=common.numbers,
    metavar="N,N,…",
    help="Also measure these numbers of workers with the demo's model.",
)
@common.count_option("--slots", 64, "Slots of each worker.")
@common.seconds_option(
    "--text-seconds",
    2.7,
    "Seconds that a text takes on a simulated GPU. The default is that of an H100 with 64 jobs at once.",
)
@common.count_option("--max-output-tokens", 256, "New tokens of each text.")
@common.seconds_option("--seconds", 30.0, "How long each number of workers is measured.")
@click.option(
    "--plot",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Plot the results (.svg, .png, .pdf).",
)
@json_fields(("machine", "results"))
def workers(
    simulated: list[int],
    demo: list[int],
    slots: int,
    text_seconds: float,
    max_output_tokens: int,
    seconds: float,
    plot: Path | None,
    fields: Fields | None,
) -> None:
    """Measure jobs an hour by the number of workers, on both databases.

    A simulated GPU is a server for HELIXQ_ENGINE=openai whose texts take as long as a GPU's: what is measured
    then is the queue, Redis and the database. Everything shares this machine's cores.
    """
    from cli.bench import measure_workers

    if plot:
        check_picture(plot)
    with common.temporary_folder() as folder:
        results = measure_workers.run(
            folder,
            simulated=sorted(simulated),
            demo=sorted(demo),
            slots=slots,
            text_seconds=text_seconds,
            tokens=max_output_tokens,
            seconds=seconds,
            on_progress=common.show_progress,
        )
    if plot:
        _draw(plot, results)
    if fields:
        output = {"machine": common.machine(), "results": [asdict(result) for result in results]}
        fields.print(output)
        return
    click.echo(
        f"{slots} slots a worker; {text_seconds:g} s a text on a simulated GPU; {common.machine()}.\n"
    )
    click.echo(
        "| database | engine | workers | jobs an hour | of what the GPUs could do | processor a job: worker | Redis |"
    )
    click.echo("|---|---|---|---|---|---|---|")
    for r in results:
        share = f"{r.jobs_an_hour / r.possible:.0%}" if r.possible else "–"
        click.echo(
            f"| {r.database} | {r.engine} | {r.workers} | {r.jobs_an_hour:,.0f} | {share} "
            f"| {r.worker_cost:.1f} ms | {r.redis_cost:.1f} ms |"
        )


def _draw(file: Path, results: Sequence[Result]) -> None:
    """Plot jobs an hour by the number of workers."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    mpl.rcParams["svg.hashsalt"] = "helixq"  # the same picture has the same bytes
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.subplots()
    possible = {r.workers: r.possible for r in results if r.possible}
    axes.plot(
        [*possible], [*possible.values()], ":", color="#888888", label="what the GPUs could do"
    )
    colors = {"SQLite": "#1a6fc2", "PostgreSQL": "#c2571a"}
    for database, color in colors.items():
        for engine, style in (("simulated", "o-"), ("demo", "s--")):
            own = [r for r in results if (r.database, r.engine) == (database, engine)]
            if own:
                name = "simulated GPUs" if engine == "simulated" else "demo model"
                axes.plot(
                    [r.workers for r in own],
                    [r.jobs_an_hour for r in own],
                    style,
                    color=color,
                    label=f"{database}, {name}",
                )
    counts = sorted({r.workers for r in results})
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_xlabel("workers, all on one machine")
    axes.set_ylabel("jobs an hour")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)
