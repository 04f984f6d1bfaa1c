"""`helixq up`, `web`, `worker`, `maintain` and `migrate`. `cli.up` and `cli.parts` implement them.

These are imported by the commands, since they import most of the program, which their help does without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from cli.fields import Command, Fields, json_fields
from jobs import logs
from jobs.program import exit_at_once

if TYPE_CHECKING:
    from jobs.settings import Settings


@click.command()
@click.pass_obj
def up(settings: Settings) -> None:
    """Run Redis, the database, one worker and the web in one place.

    It prints the address to open, and keeps everything in HELIXQ_DATA_DIR, the folder `data` by default. The demo
    model answers unless HELIXQ_BASE_MODEL and HELIXQ_ADAPTERS name others. Ctrl-C stops it, and the next start
    finds all jobs again.
    """
    from cli import up as module

    logs.configure(settings.log_format, "up")
    exit_at_once(module.run(settings))


#: `helixq up` prepares both while its parts import.
AFTER_STDIN = click.option(
    "--after-stdin",
    is_flag=True,
    hidden=True,
    help="Connect to Redis and the database after the end of standard input.",
)


@click.command()
@AFTER_STDIN
@click.pass_obj
def web(settings: Settings, /, *, after_stdin: bool) -> None:
    """Run the web server."""
    from cli import parts

    logs.configure(settings.log_format, "web")
    parts.web(settings, after_stdin=after_stdin)


@click.command()
@AFTER_STDIN
@click.pass_obj
def worker(settings: Settings, /, *, after_stdin: bool) -> None:
    """Run one worker. It waits for Redis and the database."""
    from cli import parts

    logs.configure(settings.log_format, "worker")
    exit_at_once(parts.worker(settings, after_stdin=after_stdin))


@click.command()
@click.pass_obj
def maintain(settings: Settings) -> None:
    """Run the background duties without a worker.

    They take back lost stages, publish unpublished jobs, work on batches, send webhooks, and delete
    what is old. Every worker runs them too; use this where no worker may be running.
    """
    from cli import parts

    logs.configure(settings.log_format, "maintain")
    parts.maintain(settings)


@click.command(cls=Command)
@click.option(
    "--to",
    "target",
    default="head",
    help="The revision to migrate to, up or down: head, base or an id. base drops all tables.",
)
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_fields(("revision",))
@click.pass_obj
def migrate(settings: Settings, /, target: str, yes: bool, fields: Fields | None) -> None:
    """Migrate the database schema to the latest revision."""
    from cli import parts

    if target == "base" and not yes:
        click.confirm("Drop all tables with all jobs and API keys?", abort=True, err=True)
    logs.configure(settings.log_format, "migrate")
    revision = parts.migrate(settings, target)
    if fields:
        fields.print({"revision": revision}, lines=True)
        return
    click.echo(f"The database schema is at revision {revision or 'base (empty)'}.")
