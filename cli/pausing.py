"""`helixq pause` and `helixq resume`: whether workers start further stages."""

from __future__ import annotations

import datetime as dt
from typing import Any

import click

from cli.client import Client
from cli.fields import Command, Fields, json_fields
from cli.options import server
from cli.plain import printable


@click.command(cls=Command)
@click.option("--note", metavar="TEXT", help="A message for all who wait, such as the reason.")
@json_fields("PauseChange")
@server
def pause(client: Client, /, note: str | None, fields: Fields | None) -> None:
    """Pause the queue: stages that run finish, and no other starts until `helixq resume`.

    Questions are still accepted, and wait. A server that requires keys needs one with the scope admin.
    """
    changed = client.pause(note)
    _show(changed, fields, sentence(changed["pause"]))


@click.command(cls=Command)
@json_fields("PauseChange")
@server
def resume(client: Client, /, fields: Fields | None) -> None:
    """Resume the queue that `helixq pause` paused."""
    changed = client.resume()
    said = "The queue was not paused."
    if changed["changed"]:
        said = f"The queue is resumed. It had been {_since(changed['pause'])}."
    _show(changed, fields, said)


def sentence(pause: dict[str, Any]) -> str:
    """Return since when the queue is paused, by whom, and the note."""
    return f"The queue has been {_since(pause)}."


def _since(pause: dict[str, Any]) -> str:
    at = dt.datetime.fromisoformat(pause["paused_at"])
    note = f": {pause['note'].rstrip('.')}" if pause["note"] else ""
    return printable(f"paused since {at:%Y-%m-%d %H:%M} UTC by {pause['paused_by']}{note}")


def _show(changed: dict[str, Any], fields: Fields | None, said: str) -> None:
    if fields:
        fields.print(changed)
    else:
        click.echo(said)
