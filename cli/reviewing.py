"""`helixq jobs review`, `review-queue` and `agreement`."""

from __future__ import annotations

import shutil
from typing import Any

import click

from cli.client import Client
from cli.fields import Command, Fields, json_fields
from cli.jobs import row
from cli.options import TIME, server
from cli.plain import say
from cli.tables import count

RATING = click.Choice(["-1", "0", "1", "+1"])
#: What measures of agreement are called.
MEASURES = {"cohen_kappa": "Cohen's kappa", "krippendorff_alpha": "Krippendorff's alpha"}


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


@click.command("review-queue", cls=Command)
@click.option(
    "--kind",
    type=click.Choice(["unreviewed", "disagreements"]),
    help="A sample of the newest completed jobs without your review, the default; or jobs that reviewers rated differently.",
)
@click.option(
    "--seed", type=int, help="Of the sample: the same seed gives everybody the same order."
)
@click.option("--reviewer", metavar="NAME", help="Whose queue; by default the key's owner.")
@click.option(
    "--since", metavar="TIME", type=TIME, help="Created then or later: jobs, or their reviews."
)
@click.option("--until", metavar="TIME", type=TIME, help="Created before then.")
@click.option(
    "--limit", type=click.IntRange(1, 100), default=20, show_default=True, help="How many jobs."
)
@json_fields("ToReview")
@server
def queue(client: Client, /, fields: Fields | None, **options: str | int | None) -> None:
    """List jobs to review next, with the ratings so far."""
    found = client.review_queue(_given(options))
    if fields:
        fields.print_each(found)
        return
    columns = shutil.get_terminal_size((120, 24)).columns
    names_owners = len({job["owner"] for job in found}) > 1
    for job in found:
        click.echo(row(job, columns, names_owners=names_owners))
        for verdict in job["verdicts"]:
            say(f"    {verdict['reviewer']}: {_ratings(verdict)}")
    if not found:
        click.echo("There is nothing to review.", err=True)


@click.command(cls=Command)
@click.option("--since", metavar="TIME", type=TIME, help="Reviews created then or later.")
@click.option("--until", metavar="TIME", type=TIME, help="Reviews created before then.")
@json_fields("Agreements")
@server
def agreement(client: Client, /, fields: Fields | None, **options: str | None) -> None:
    """Say how far reviewers agree: 1 if always, 0 if no more often than by chance."""
    found = client.agreement(_given(options))
    if fields:
        fields.print(found)
        return
    for rating, agreed in found.items():
        say(f"{rating + ':':<14}{_agreed(agreed)}")


def _given(options: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in options.items() if value is not None}


def _ratings(verdict: dict[str, Any]) -> str:
    """Return the ratings of a verdict, such as ``critique +1``."""
    given = [
        f"{name} {rating:+d}" if rating else f"{name} 0"
        for name in ("critique", "regeneration")
        if (rating := verdict[name]) is not None
    ]
    return ", ".join(given) or "not rated"


def _agreed(agreement: dict[str, Any]) -> str:
    """Return how far reviewers agree in a rating, in words."""
    if agreement["measure"] is None:
        return "needs two reviewers of the same job"
    measure, value = MEASURES[agreement["measure"]], agreement["value"]
    figure = (
        f"{measure} {value:.2f}"
        if value is not None
        else f"{measure} is not defined, since all ratings are the same"
    )
    return f"{figure}, {count(agreement['jobs'], 'job')} that {' and '.join(agreement['reviewers'])} rated"
