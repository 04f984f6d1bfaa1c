"""`helixq ask` and `chat`."""

from __future__ import annotations

import sys
from typing import Any

import click

from cli import asking, chatting
from cli.client import Client
from cli.fields import Command, Fields, json_fields
from cli.options import read_question, server
from jobs.pipeline import Sampling

#: The server's defaults, which are the model card's.
CARD = Sampling()


@click.command(cls=Command)
@click.argument("question", required=False)
@click.option("--no-wait", is_flag=True, help="Print the job's id and exit.")
@click.option("--final", is_flag=True, help="Print only the final answer.")
@json_fields("ResponseObject", "answer", "page")
@click.option("--open", "opens", is_flag=True, help="Open the job's page in a browser.")
@click.option("--system", metavar="TEXT", help="System prompt (default: the model card's).")
@click.option(
    "--temperature", type=float, help=f"0 is greedy decoding (default: {CARD.temperature:g})."
)
@click.option(
    "--top-k", type=int, help=f"Sample from this many tokens; 0 is all (default: {CARD.top_k})."
)
@click.option(
    "--top-p",
    type=float,
    help=f"Sample from tokens with this total probability (default: {CARD.top_p:g}).",
)
@click.option(
    "--max-output-tokens",
    type=int,
    help=f"Maximum number of new tokens per stage (default: {CARD.max_output_tokens}).",
)
@click.option("--seed", type=int, help="The same seed gives the same texts (default: random).")
@click.option(
    "--stop",
    metavar="TEXT",
    multiple=True,
    help="End the final text before this text; may be repeated, up to 4 times.",
)
@click.option(
    "--rounds", type=int, help="Rounds of critique and regeneration, 1 to 5 (default: 1)."
)
@click.option("--priority", type=int, help="0 to 9; higher runs first (default: 5).")
@server
def ask(
    client: Client,
    /,
    question: str | None,
    no_wait: bool,
    final: bool,
    fields: Fields | None,
    opens: bool,
    system: str | None,
    stop: tuple[str, ...],
    **options: Any,
) -> None:
    """Ask one question and print the three texts.

    Without QUESTION, or with `-`, it is read from standard input. On a terminal, a line shows the
    job's progress. Ctrl-C does not end the job.
    """
    if final and (fields or no_wait):
        raise click.UsageError("--final cannot be combined with --json or --no-wait.")
    if no_wait and fields and not {"id", "page"}.issuperset(fields.names or ()):
        raise click.UsageError("With --no-wait, --json takes only the fields id and page.")
    given = {
        **options,
        "instructions": system,
        "stop": list(stop) or None,
        "input": read_question(question),
    }
    job_id = client.submit({k: v for k, v in given.items() if v is not None})
    if opens:
        asking.open_page(client.page(job_id))
    if no_wait:
        if fields:
            fields.print({"id": job_id, "page": client.page(job_id)}, lines=True)
        else:
            click.echo(job_id)
        return
    status = asking.follow(client, job_id, fields=fields, final=final)
    sys.exit(status)


@click.command()
@server
def chat(client: Client, /) -> None:
    """Ask questions in a loop, like the model card's program.

    On a terminal, lines can be edited and are kept in a history. A pasted block is one question, and so is the text
    between two lines of three quotes. /help lists the commands. Ctrl-C cancels the question that is being answered,
    and Ctrl-D ends the loop.
    """
    status = chatting.Chat(client).run()
    sys.exit(status)
