"""`helixq jobs import`: the histories of a file into the database.

What uses the database is imported by the command itself: that takes half a second, which its help and completion
do without.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.fields import Command, Fields, json_fields
from cli.files import open_file
from cli.log_keys import log_keys
from cli.plain import say
from cli.tables import count
from jobs.tlog.note import Verifier

if TYPE_CHECKING:
    from jobs.settings import Settings


@click.command("import", cls=Command)
@click.argument("file", metavar="FILE", type=click.Path(allow_dash=True, path_type=Path))
@log_keys
@json_fields(("imported", "present", "left_out", "logs"))
@click.pass_obj
def import_(settings: Settings, /, file: Path, keys: list[Verifier], fields: Fields | None) -> None:
    """Import the histories of a file into the database, with their proofs.

    FILE is an export of the shape history as JSON Lines, compressed or not; - is standard input. The whole file is
    checked first, and nothing of it is imported if a line is not as it was recorded. Standard input is checked and
    imported up to 100 jobs at a time. Jobs that are there already are left as they are.
    """
    from cli.database import open_database
    from jobs.importer import import_file

    is_stream = str(file) == "-" or not file.is_file()
    with open_database(settings) as database:
        report = import_file(lambda: open_file(file), database, keys, check_first=not is_stream)
    if fields:
        fields.print({**vars(report), "logs": sorted(report.logs)}, lines=True)
        return
    said = f"Imported {count(report.imported, 'job')}"
    if report.logs:
        said += f" of {', '.join(sorted(report.logs))}"
    if not keys and report.logs:
        said += ", whose signatures were not checked, since no --key was given"
    said += "."
    if report.present:
        said += f" {count(report.present, 'job')} {_was(report.present)} there already."
    if report.left_out:
        said += (
            f" {count(report.left_out, 'job')} {_was(report.left_out)} left out, without an entry "
            "in a log."
        )
    say(said)


def _was(number: int) -> str:
    return "was" if number == 1 else "were"
