"""`helixq stats`: what the jobs that have ended add up to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import click

from cli.client import Client
from cli.fields import Command, Fields, json_fields
from cli.options import TIME, server
from cli.plain import say
from cli.tables import count, print_table

#: The columns of the table, without that of the groups. The last two are ratings of the regeneration.
HEADS = (
    "ended",
    "completed",
    "failed",
    "wait",
    "duration",
    "changed",
    "-1/0/+1",
    "rated -1",
)
#: Digits of a digest in the table.
DIGITS = 8


@click.command("stats", cls=Command)
@click.option(
    "--by",
    metavar="GROUP",
    help="hour, day, model, adapter, owner, or metadata.KEY. Without it, only the total.",
)
@click.option(
    "--since",
    metavar="TIME",
    type=TIME,
    help="Jobs created then or later: 2026-01-31, or 7d for 7 days ago.",
)
@click.option("--until", metavar="TIME", type=TIME, help="Jobs created before then.")
@click.option(
    "--owner", metavar="NAME", help="Only jobs of this owner; other owners' need the scope audit."
)
@click.option("--model", metavar="DIGEST", help="Of this model: its digest, sha256:…")
@click.option(
    "--adapter",
    metavar="NAME",
    help="With this adapter: its name, the end of its name, or its digest.",
)
@click.option(
    "--compare",
    metavar="A,B",
    help="Two models, adapters or periods, such as 2026-01-01/2026-02-01.",
)
@json_fields("Statistics")
@server
def command(client: Client, /, fields: Fields | None, **options: str | None) -> None:
    """Summarize the jobs that have ended: how many, how long, how much was changed, how they were rated.

    The table has the median wait and duration, the mean share of words that the regenerator changed, how many
    regenerations were rated -1, 0 and +1, and the share of -1 among them.
    """
    found = client.statistics({name: value for name, value in options.items() if value is not None})
    if fields:
        fields.print(found)
        return
    say(f"{found['since']} to {found['until']}: {count(found['total']['jobs'], 'job')} ended")
    if not found["current"]:
        say("Some jobs have just ended and are not counted yet.")
    rows = [(_label(group["key"], found["by"]), group) for group in found["groups"]]
    if (others := found["others"]) is not None:
        rows.append((f"{others['values']} others", others))
    print_table(
        (str(found["by"] or ""), *HEADS),
        [(label, *_cells(figures)) for label, figures in [*rows, ("total", found["total"])]],
    )
    if (comparison := found["comparison"]) is not None:
        say("")
        print_table(("measure", "first", "second", "difference [95%]"), _compared(comparison))


def _label(key: dict[str, Any], by: str) -> str:
    """Return what a group is called in the table."""
    if "start" in key:
        day, _, time = str(key["start"]).partition("T")
        return day if by == "day" else f"{day} {time[:5]}Z"
    if "role" in key:
        # Of a folder, the end of its path.
        name = "/".join((key["name"] or "").split("/")[-2:])
        return f"{key['role']} {name} {_digits(key['digest'])}" if key["role"] else "no adapter"
    if "model" in key:
        return _digits(key["model"]) if key["model"] else "no model"
    value = key["owner"] if "owner" in key else key["value"]
    return "none" if value is None else str(value)


def _digits(digest: str | None) -> str:
    return (digest or "").removeprefix("sha256:")[:DIGITS]


def _cells(figures: dict[str, Any]) -> tuple[str, ...]:
    statuses, ratings = figures["statuses"], figures["reviews"]["regeneration"]
    rated = sum(ratings.values())
    return (
        str(figures["jobs"]),
        str(statuses["completed"]),
        str(statuses["failed"]),
        _seconds(figures["queue_wait"]["p50"]),
        _seconds(figures["duration"]["p50"]),
        _percent(figures["changed"]["mean"]),
        "/".join(str(ratings[rating]) for rating in ("-1", "0", "1")),
        _percent(ratings["-1"] / rated if rated else None),
    )


def _compared(comparison: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """Yield the rows of the measures that any of the two sides has."""
    for measure in comparison["measures"]:
        name, difference = measure["measure"], measure["difference"]
        sides = [measure["first"], measure["second"]]
        if not any(side["count"] for side in sides):
            continue
        written = _written(name)
        apart = "–"
        if difference is not None:
            apart = f"{written(difference['value'])} [{written(difference['low'])}, {written(difference['high'])}]"
        yield name, *(f"{written(side['value'])} (n={side['count']})" for side in sides), apart


def _written(measure: str) -> Callable[[float | None], str]:
    """Return the function that writes values of a measure."""
    name = measure.rpartition(".")[2]
    if name in ("rate", "output_tokens"):
        return _number
    return _seconds if name in ("time", "first_token", "duration") else _percent


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"


def _seconds(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1000:.3g} ms"


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{value * 100:.1f}%"
