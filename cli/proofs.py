"""`helixq jobs proof`: the proof that a job is in the transparency log."""

from __future__ import annotations

from pathlib import Path

import click

from cli.client import Client
from cli.errors import ExpectedError
from cli.options import server


@click.command()
@click.argument("job_id", metavar="ID")
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, writable=True, path_type=Path),
    help="Write it to this file.",
)
@click.option("--origin", is_flag=True, help="The proof that it was imported with.")
@click.option(
    "--review", type=click.IntRange(min=0), metavar="NUMBER", help="The proof of this review."
)
@click.option(
    "--erasure", type=click.IntRange(min=0), metavar="NUMBER", help="The proof of this erasure."
)
@server
def proof(
    client: Client,
    /,
    job_id: str,
    output: Path | None,
    origin: bool,
    **parts: int | None,
) -> None:
    """Print the proof that a job is in the transparency log: a C2SP tlog-proof file.

    Reviews and erasures have proofs of their own, and are counted from 0 on, as in the job's history.
    """
    parameters = {name: str(number) for name, number in parts.items() if number is not None}
    if len(parameters) > 1:
        raise click.UsageError("Give one of --review and --erasure.")
    if origin:
        parameters["origin"] = "true"
    text = client.proof(job_id, **parameters)
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        output.write_text(text, encoding="utf-8", newline="\n")
    except OSError as error:
        raise ExpectedError(f"{output} cannot be written ({error.strerror})") from error
