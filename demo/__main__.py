"""``python -m demo``: make the demo's checkpoint again, as `demo.recipe` has it."""

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
    help="Where base and adapters are written; demo/build/checkpoint by default.",
)
@click.option(
    "--work",
    type=click.Path(path_type=Path, file_okay=False),
    default=HERE / "build",
    help="Where states and full models are kept; demo/build by default.",
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--curves", type=click.Path(path_type=Path, dir_okay=False), help="Draw the losses.")
def main(out: Path, work: Path, seed: int, curves: Path | None) -> None:
    """Make the miniature HelixNet: tokenizer, base, three full fine-tunes, three adapters.

    What is there already is kept: delete the folders to start again.
    """
    out.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    recipe.make(out, work, seed=seed)
    if curves:
        recipe.draw(work, curves)
    click.echo(f"made base and adapters in {out}, and the full models in {work}")


if __name__ == "__main__":
    main()
