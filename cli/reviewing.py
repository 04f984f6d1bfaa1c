"""`helixq jobs review`."""

from __future__ import annotations

from typing import Any

import click

from cli.client import Client
from cli.fields import Command, Fields, json_fields
from cli.options import server

RATING = click.Choice(["-1", "0", "1", "+1"])


@click.command(cls=Command)
@click.argument("job_id", metavar="ID")
@click.option("--critique", type=RATING, help="Whether the critique is right.")
@click.option("--regeneration", type=RATING, help="Whether the regeneration is good.")
@click.option("--corrected-answer", metavar="TEXT", help="What the answer should have been.")
@click.option("--tag", "tags", metavar="TAG", multiple=True, help="May be repeated.")
@click.option("--note", metavar="TEXT", help="Anything else.")
@click.option("--reviewer", metavar="NAME", help="Who you are, on a server without API keys.")
@json_fields("Review")
@server
def review(
    client: Client,
    /,
    job_id: str,
    critique: str | None,
    regeneration: str | None,
    tags: tuple[str, ...],
    fields: Fields | None,
    **texts: str | None,
) -> None:
    """Review a job that has ended. Your last review counts, and the earlier ones stay."""
    body: dict[str, Any] = {name: text for name, text in texts.items() if text is not None}
    for name, rating in (("critique", critique), ("regeneration", regeneration)):
        if rating is not None:
            body[name] = int(rating)
    if tags:
        body["tags"] = list(tags)
    added = client.review(job_id, body)
    if fields:
        fields.print(added, lines=True)
    else:
        click.echo(f"{added['id']} is added.")
