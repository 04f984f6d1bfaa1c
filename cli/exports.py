"""`helixq jobs export` and `import`: many histories as a file."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import click

from cli import listing, traces
from cli.client import Client
from cli.errors import ExpectedError
from cli.options import filter_parameters, job_filters, log_keys, server
from jobs.formats.compression import Compression
from jobs.formats.writing import FileKind, Format, kind_of
from jobs.importer import import_file
from jobs.pipeline import Role
from jobs.protocol.shapes import Shape
from jobs.settings import Settings
from jobs.tlog.note import Verifier

#: A format that is made here, of histories as the server exports them.
OTLP = "otlp"


@click.command()
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write to this file, which appears when it is whole (default: standard output).",
)
@click.option(
    "--format",
    "format_",
    type=click.Choice([*(f.value for f in Format), OTLP]),
    help="The format (default: as FILE ends, or jsonl). otlp is OpenTelemetry's traces.",
)
@click.option(
    "--endpoint", metavar="URL", help="With --format otlp: send it there, as http://…/v1/traces."
)
@click.option(
    "--shape",
    type=click.Choice([s.value for s in Shape]),
    default=Shape.HISTORY.value,
    show_default=True,
    help="What a row is: everything about a job, a pair of texts, or a prompt and its completion.",
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
@click.pass_obj
def export(
    settings: Settings,
    /,
    output: Path | None,
    format_: str | None,
    compression: str | None,
    endpoint: str | None,
    url: str | None,
    **options: Any,
) -> None:
    """Export jobs to a file, the oldest first. Most filters find jobs that have ended."""
    parameters = filter_parameters(**options)
    if format_ == OTLP:
        if parameters["shape"] != Shape.HISTORY or compression or (output and endpoint):
            raise click.UsageError(
                "otlp is of histories, uncompressed, and to a file or an endpoint."
            )
        with Client(url or settings.url, settings.api_key) as client:
            lines = client.export(parameters)
            if endpoint is not None:
                click.echo(f"Sent {listing.count(traces.send(endpoint, lines), 'trace')}.")
            else:
                _write(traces.in_json(lines), output)
        return
    if endpoint is not None:
        raise click.UsageError("--endpoint is for --format otlp.")
    named = (kind_of(output.name) if output else None) or FileKind(Format.JSONL)
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
    with Client(url or settings.url, settings.api_key) as client:
        _write(client.export(parameters), output)


@click.command("import")
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True, path_type=Path))
@log_keys
@click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
@click.pass_obj
def import_(settings: Settings, /, file: Path, keys: list[Verifier], as_json: bool) -> None:
    """Import the histories of a file into the database, with their proofs.

    FILE is an export of the shape history as JSON Lines, compressed or not; - is standard input. The whole file is
    checked first, and nothing of it is imported if a line is not as it was recorded. Standard input is checked and
    imported 100 jobs at a time. Jobs that are there already are left as they are.
    """
    is_stream = str(file) == "-" or not file.is_file()
    with listing.open_database(settings) as database:
        report = import_file(lambda: open_file(file), database, keys, check_first=not is_stream)
    if as_json:
        click.echo(json.dumps({**vars(report), "logs": sorted(report.logs)}))
        return
    said = f"Imported {listing.count(report.imported, 'job')}"
    if report.logs:
        said += f" of {', '.join(sorted(report.logs))}"
    if not keys and report.logs:
        said += ", whose signatures were not checked, since no --key was given"
    said += "."
    if report.present:
        said += f" {listing.count(report.present, 'job')} {_was(report.present)} there already."
    if report.left_out:
        said += (
            f" {listing.count(report.left_out, 'job')} {_was(report.left_out)} left out: they had no "
            "entry in a log yet."
        )
    click.echo(said)


def open_file(file: Path) -> IO[bytes]:
    """Open a file to read; ``-`` is standard input."""
    if str(file) == "-":
        return sys.stdin.buffer
    try:
        return file.open("rb")
    except OSError as error:
        raise ExpectedError(f"{file} cannot be read ({error.strerror})") from error


def _was(number: int) -> str:
    return "was" if number == 1 else "were"


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
    """Open a file that takes the place of another when it is whole, and is deleted otherwise."""
    part = output.with_name(f"{output.name}.part")
    try:
        with part.open("wb") as file:
            yield file
            os.fsync(file.fileno())
        part.replace(output)
    except OSError as error:
        raise ExpectedError(f"{output} cannot be written ({error.strerror})") from error
    finally:
        part.unlink(missing_ok=True)
