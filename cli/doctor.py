"""`helixq doctor`: what is wrong with a deployment, and what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli.fields import Command, Fields, json_fields
from cli.plain import printable
from cli.statuses import ExitStatus

if TYPE_CHECKING:
    from jobs.settings import Settings, SettingsError

#: The checks (`cli.checks.CHECKS`, which is slow to import).
NAMES = ("data", "database", "redis", "log", "model", "gpu", "worker", "web", "metrics", "traces")
COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@click.command(cls=Command)
@click.option(
    "--skip",
    "skipped",
    type=click.Choice(NAMES),
    multiple=True,
    help="Leave a check out, such as model where no worker runs; may be repeated.",
)
@json_fields(("check", "level", "message"))
@click.pass_obj
def command(
    found: Settings | SettingsError, /, skipped: tuple[str, ...], fields: Fields | None
) -> None:
    """Check a deployment from this machine, with its settings, and say what is wrong and what to do.

    It changes nothing. The exit status is 1 if there is an error; warnings leave it 0.
    """
    from cli.checks import run
    from cli.checks.findings import Level, Result

    if isinstance(found, Exception):
        results = iter([Result("settings", Level.ERROR, str(found))])
    else:
        results = run(found, skipped)
    kept = []
    for result in results:
        kept.append(result)
        if not fields:
            level = click.style(f"{result.level:<7}", fg=COLOURS[result.level])
            click.echo(f"{level}  {result.check:<8}  {printable(result.message)}")
    if fields:
        fields.print([result.to_dict() for result in kept])
    if any(result.level is Level.ERROR for result in kept):
        click.get_current_context().exit(ExitStatus.FAILED)
