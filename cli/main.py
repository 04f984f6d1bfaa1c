"""The commands and their options. Other modules of this package implement them."""

from __future__ import annotations

import json
import sys
from typing import Any

import click

from cli import colour, completion, doctor, evaluating, status
from cli.bench import bench
from cli.errors import ExpectedError, explain, fail
from cli.fields import Fields, json_fields
from cli.help import Group, add_examples
from cli.jobs import jobs
from cli.keys import keys
from cli.lora import lora
from cli.options import address, read_question, server
from cli.statuses import ExitStatus, Interrupted
from cli.webhooks import webhooks
from jobs import logs, settings
from jobs.protocol import schemas
from jobs.settings import Settings


class _Group(Group):
    """Loads the settings before any command, and prints expected errors as one sentence."""

    def invoke(self, context: click.Context) -> Any:
        try:
            context.obj = settings.load()
        except settings.SettingsError as error:
            context.obj = error
        try:
            return super().invoke(context)
        except KeyboardInterrupt:
            raise Interrupted("Interrupted.") from None
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if (sentence := explain(error)) is None:
                raise
            status = error.status if isinstance(error, ExpectedError) else ExitStatus.FAILED
            raise fail(sentence, status) from error

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(context, args)
        if isinstance(context.obj, settings.SettingsError) and name not in WITHOUT_SETTINGS:
            raise fail(str(context.obj)) from context.obj
        return name, command, rest


#: Lines of the help are as long as the terminal, up to 120 characters.
SHOWN = {"help_option_names": ["-h", "--help"], "max_content_width": 120}
#: The commands that run even if a setting is wrong.
WITHOUT_SETTINGS = {"completion", "doctor"}


@click.group(cls=_Group, context_settings=SHOWN)
@click.version_option(package_name="helixq", prog_name="helixq")
@click.option(
    "--color",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    help="Whether there are colours: on a terminal by default. NO_COLOR and FORCE_COLOR say it too.",
)
@click.pass_context
def main(context: click.Context, /, color: str) -> None:
    """Answer questions the HelixNet way: actor, critic, regenerator.

    Settings are environment variables that start with HELIXQ_; docs/settings.md lists them.
    """
    context.color = colour.choice(color)


@main.command()
@click.pass_obj
def up(settings: Settings) -> None:
    """Run Redis, the database, one worker and the web in one place."""
    from cli import up as module

    logs.configure(settings.log_format, "up")
    sys.exit(module.run(settings))


@main.command()
@click.pass_obj
def web(settings: Settings) -> None:
    """Run the web server."""
    from cli import parts

    logs.configure(settings.log_format, "web")
    parts.web(settings)


@main.command()
@click.pass_obj
def worker(settings: Settings) -> None:
    """Run one worker. It waits for Redis and the database."""
    from cli import parts

    logs.configure(settings.log_format, "worker")
    sys.exit(parts.worker(settings))


@main.command()
@click.pass_obj
def maintain(settings: Settings) -> None:
    """Run the background duties without a worker.

    They take back lost stages, publish unpublished jobs, work on batches, send webhooks, and delete
    what is old. Every worker runs them too; use this where no worker may be running.
    """
    from cli import parts

    logs.configure(settings.log_format, "maintain")
    parts.maintain(settings)


@main.command()
@click.option(
    "--to",
    "target",
    default="head",
    help="The revision to migrate to, up or down: head, base or an id.",
)
@click.pass_obj
def migrate(settings: Settings, target: str) -> None:
    """Migrate the database schema to the latest revision."""
    from cli import parts

    logs.configure(settings.log_format, "migrate")
    revision = parts.migrate(settings, target)
    click.echo(f"The database schema is at revision {revision or 'base (empty)'}.")


@main.command()
@click.argument("question", required=False)
@click.option("--no-wait", is_flag=True, help="Print the job's id and exit.")
@click.option("--final", is_flag=True, help="Print the final answer alone, once it is there.")
@json_fields(schemas.Response, "answer", "page")
@click.option("--open", "opens", is_flag=True, help="Open the job's page in a browser.")
@click.option("--system", metavar="TEXT", help="System prompt (default: the model card's).")
@click.option("--temperature", type=float, help="0 is greedy decoding.")
@click.option("--top-k", type=int, help="Sample from this many tokens; 0 is all.")
@click.option("--top-p", type=float, help="Sample from tokens with this total probability.")
@click.option("--max-output-tokens", type=int, help="Maximum number of new tokens per stage.")
@click.option("--seed", type=int, help="The same seed gives the same texts.")
@click.option("--rounds", type=int, help="Rounds of critique and regeneration, 1 to 5.")
@click.option("--priority", type=int, help="0 to 9; higher runs first.")
@server
@click.pass_obj
def ask(
    settings: Settings,
    /,
    question: str | None,
    no_wait: bool,
    final: bool,
    fields: Fields | None,
    opens: bool,
    url: str | None,
    system: str | None,
    **options: Any,
) -> None:
    """Ask one question and print the three texts.

    Without QUESTION, or with `-`, it is read from standard input. On a terminal a line tells how the job goes on.
    Ctrl-C does not end the job.
    """
    from cli import asking
    from cli.client import Client

    if final and (fields or no_wait):
        raise click.UsageError("--final goes neither with --json nor with --no-wait.")
    given = {**options, "instructions": system, "input": read_question(question)}
    with Client(url or settings.url, settings.api_key) as client:
        job_id = client.submit({k: v for k, v in given.items() if v is not None})
        if opens:
            asking.open_page(client.page(job_id))
        if no_wait:
            shown = {"id": job_id, "page": client.page(job_id)}
            click.echo(json.dumps(shown) if fields else job_id)
            return
        status = asking.follow(client, job_id, fields=fields, final=final, hint=address(url))
    sys.exit(status)


@main.command()
@server
@click.pass_obj
def chat(settings: Settings, /, url: str | None) -> None:
    """Ask questions in a loop, like the model card's program.

    On a terminal, lines are edited and kept in a history, a pasted block is one question, and so is what stands
    between two lines of three quotes. /help lists the commands. Ctrl-C cancels the question that is being answered,
    and Ctrl-D ends the loop.
    """
    from cli import chatting
    from cli.client import Client

    with Client(url or settings.url, settings.api_key) as client:
        status = chatting.Chat(client).run()
    sys.exit(status)


main.add_command(bench)
main.add_command(completion.command, "completion")
main.add_command(doctor.command, "doctor")
main.add_command(evaluating.command)
main.add_command(jobs)
main.add_command(keys)
main.add_command(lora)
main.add_command(status.command, "status")
main.add_command(webhooks)
add_examples(main)
