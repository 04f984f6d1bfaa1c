"""``python -m demo``: train the demo's checkpoint with `demo.recipe`."""

from __future__ import annotations

from pathlib import Path

import click

from demo import recipe

HERE = Path(__file__).parent


@click.command()
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=HERE / "build" / "checkpoint",
    help="Folder for base and adapters; demo/build/checkpoint by default.",
)
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    default=HERE / "build",
    help="Folder for training states and full models; demo/build by default.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option(
    "--curves",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Plot the losses into this file.",
)
def main(out: Path, work: Path, seed: int, curves: Path | None) -> None:
    """Train the miniature HelixNet: tokenizer, base, three full fine-tunes, three adapters.

    Existing results are kept. Delete the folders to start again.
    """
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    recipe.make(out, work, seed=seed)
    if curves:
        recipe.draw(work, curves)
    click.echo(f"wrote base and adapters to {out}, and the full models to {work}")


if __name__ == "__main__":
    main()
