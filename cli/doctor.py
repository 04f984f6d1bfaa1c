"""`helixq doctor`: what is wrong with a deployment, and what to do."""

from __future__ import annotations

import json

import click

from cli.statuses import ExitStatus
from jobs.settings import Settings, SettingsError

#: The checks (`cli.checks.CHECKS`, which is slow to import).
NAMES = ("data", "database", "redis", "log", "model", "gpu", "worker", "web")
COLOURS = {"ok": "green", "warning": "yellow", "error": "red"}


@click.command()
@click.option(
    "--skip",
    "skipped",
    type=click.Choice(NAMES),
    multiple=True,
    help="Leave a check out, such as model where no worker runs; may be repeated.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
@click.pass_obj
def command(found: Settings | SettingsError, /, skipped: tuple[str, ...], as_json: bool) -> None:
    """Check a deployment from this machine, with its settings, and say what is wrong and what to do.

    It changes nothing. The exit status is 1 if there is an error; warnings leave it 0.
    """
    from cli.checks import Level, Result, run

    if isinstance(found, SettingsError):
        results = iter([Result("settings", Level.ERROR, str(found))])
    else:
        results = run(found, skipped)
    kept = []
    for result in results:
        kept.append(result)
        if not as_json:
            level = click.style(f"{result.level:<7}", fg=COLOURS[result.level])
            click.echo(f"{level}  {result.check:<8}  {result.message}")
    if as_json:
        click.echo(json.dumps([result.to_dict() for result in kept], indent=2))
    if any(result.level is Level.ERROR for result in kept):
        click.get_current_context().exit(ExitStatus.FAILED)
