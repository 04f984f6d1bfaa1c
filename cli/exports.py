"""`helixq jobs export`: many histories as a file."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click

from cli import traces
from cli.client import Client
from cli.errors import ExpectedError
from cli.options import filter_parameters, job_filters, server
from cli.tables import count
from jobs.enums import Shape
from jobs.formats.compression import Compression
from jobs.formats.writing import FileKind, Format, kind_of
from jobs.pipeline import Role

#: A format that is made here, of histories as the server exports them.
OTLP = "otlp"


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to this file, which appears when it is complete (default: standard output).",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice([*(f.value for f in Format), OTLP]),
    help="The format (default: as FILE ends, or jsonl). otlp is OpenTelemetry's traces.",
)
@click.option(
    "--endpoint",
    metavar="URL",
    help="With --format otlp: send it there, such as http://127.0.0.1:4318/v1/traces.",
)
@click.option(
    "--shape",
    type=click.Choice([s.value for s in Shape]),
    default=Shape.HISTORY.value,
    show_default=True,
    help="What a row is: everything about a job, a pair of texts, a prompt and its completion, or a review.",
)
@click.option(
    "--role",
    type=click.Choice(["all", *(r.value for r in Role)]),
    help="With --shape sft: whose texts.",
)
@click.option(
    "--compression",
    type=click.Choice([c.value for c in Compression]),
    help="The compression (default: as FILE ends).",
)
@job_filters
@server
def export(
    client: Client,
    /,
    output: Path | None,
    format_: str | None,
    compression: str | None,
    endpoint: str | None,
    **options: Any,
) -> None:
    """Export jobs to a file, the oldest first. Most filters find only jobs that have ended."""
    parameters = filter_parameters(**options)
    if format_ == OTLP:
        if parameters["shape"] != Shape.HISTORY or compression or (output and endpoint):
            raise click.UsageError(
                "--format otlp writes histories, uncompressed, to --output or to --endpoint, not to both."
            )
        lines = client.export(parameters)
        if endpoint is not None:
            click.echo(f"Sent {count(traces.send(endpoint, lines), 'trace')}.")
        else:
            _write(traces.in_json(lines), output)
        return
    if endpoint is not None:
        raise click.UsageError("--endpoint needs --format otlp.")
    named = _named(output, format_)
    if format_ is None:
        format_ = named.format
    if (
        compression is None
        and format_ == named.format
        and named.compression is not Compression.NONE
    ):
        compression = named.compression
    parameters["format"] = str(format_)
    if compression is not None:
        parameters["compression"] = str(compression)
    _write(client.export(parameters), output)


def _named(output: Path | None, format_: str | None) -> FileKind:
    """Return what a file is by its name; JSON Lines if that has no ending.

    Raises:
        UsageError: its ending is none of a format's, and no format is given: a spreadsheet would not open the file.
    """
    found = None if output is None else kind_of(output.name)
    if output is None or found is not None:
        return found or FileKind(Format.JSONL)
    is_file = output.is_file() or not output.exists()
    if format_ is None and is_file and re.fullmatch(r"\.[A-Za-z]\w*", output.suffix):
        raise click.UsageError(
            f"The ending of {output.name} names no format. Give --format, or a name that ends in .jsonl, .csv"
            " (both also with .gz or .zst) or .parquet. Spreadsheets open .csv."
        )
    return FileKind(Format.JSONL)


def _write(data: Iterable[bytes], output: Path | None) -> None:
    if output is None:
        _copy(data, sys.stdout.buffer)
    else:
        with _replacing(output) as file:
            _copy(data, file)


def _copy(data: Iterable[bytes], file: IO[bytes]) -> None:
    for piece in data:
        file.write(piece)
    file.flush()


@contextmanager
def _replacing(output: Path) -> Iterator[IO[bytes]]:
    """Open a file that takes the place of another when it is whole, and is deleted otherwise.

    A device or a pipe, such as ``/dev/stdout``, is written to, and a link stays one.
    """
    file = output.resolve()
    part = file.with_name(f"{file.name}.part")
    try:
        if file.exists() and not file.is_file():
            with output.open("wb") as opened:
                yield opened
            return
        with part.open("wb") as opened:
            yield opened
            os.fsync(opened.fileno())
        part.replace(file)
    except OSError as error:
        raise ExpectedError(f"{output} cannot be written ({error.strerror})") from error
    finally:
        part.unlink(missing_ok=True)
