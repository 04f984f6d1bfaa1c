"""`helixq keys`: make, list and revoke API keys.

What uses the database is imported by the commands themselves: that takes half a second, which their help and
completion do without.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from cli.fields import Command, Fields, json_fields
from cli.plain import say
from cli.tables import minute, print_table
from jobs.enums import Scope
from jobs.times import rfc3339
from jobs.timing import SECONDS_PER_DAY

if TYPE_CHECKING:
    from jobs.models import ApiKey
    from jobs.settings import Settings
    from jobs.use_cases.keys import KeyState

MAX_DAYS = 36_500
KEY_FIELDS = (
    "id",
    "hint",
    "name",
    "owner",
    "scopes",
    "state",
    "max_queued",
    "requests_per_minute",
    "created_at",
    "last_used_at",
    "expires_at",
    "revoked_at",
)


@click.command(cls=Command)
@click.argument("name")
@click.option(
    "--scope",
    "scopes",
    type=click.Choice([scope.value for scope in Scope]),
    multiple=True,
    help="What the key allows; may be repeated. ask (the default): submit questions, read and cancel "
    "the owner's jobs. audit: read the histories of all owners. admin: everything.",
)
@click.option("--owner", help="The owner of the jobs; several keys can share one (default: NAME).")
@click.option(
    "--days", type=click.IntRange(1, MAX_DAYS), help="Days until the key expires (default: never)."
)
@click.option(
    "--max-queued", type=click.IntRange(min=1), help="Maximum number of queued jobs of the key."
)
@click.option(
    "--requests-per-minute", type=click.IntRange(min=1), help="Maximum number of requests a minute."
)
@json_fields(("key", *KEY_FIELDS))
@click.pass_obj
def create(
    settings: Settings,
    /,
    name: str,
    scopes: tuple[str, ...],
    owner: str | None,
    days: int | None,
    max_queued: int | None,
    requests_per_minute: int | None,
    fields: Fields | None,
) -> None:
    """Make a key and print it. It is shown this once: only its hash is stored.

    NAME says what the key is for.
    """
    from cli.database import open_database
    from jobs.use_cases import keys as use_cases

    with open_database(settings) as database:
        key, secret = use_cases.create(
            database,
            name,
            [Scope(scope) for scope in scopes] or [Scope.ASK],
            owner=owner,
            expires_in=None if days is None else days * SECONDS_PER_DAY,
            max_queued=max_queued,
            requests_per_minute=requests_per_minute,
        )
    if fields:
        fields.print({"key": secret, **_to_dict(key, use_cases.KeyState.ACTIVE)})
        return
    click.echo(
        f"{key.id}: owner {key.owner}, {', '.join(key.scopes)}, {_expiry(key)}. "
        "Keep the key now, it is not shown again:",
        err=True,
    )
    click.echo(secret)


@click.command("list", cls=Command)
@json_fields(KEY_FIELDS)
@click.pass_obj
def list_(settings: Settings, /, fields: Fields | None) -> None:
    """List all keys, revoked and expired ones included."""
    from cli.database import open_database
    from jobs.use_cases import keys as use_cases

    with open_database(settings) as database:
        found = use_cases.list_keys(database)
    if fields:
        fields.print([_to_dict(key, state) for key, state in found])
        return
    heads = ("id", "key", "name", "owner", "scopes", "state", "created", "last used", "expires")
    rows = [
        (
            key.id,
            f"{key.hint}…",
            key.name,
            key.owner,
            ",".join(key.scopes),
            state.value,
            minute(key.created_at),
            minute(key.last_used_at),
            minute(key.expires_at),
        )
        for key, state in found
    ]
    print_table(heads, rows)


@click.command(cls=Command)
@click.argument("key_id", metavar="ID")
@json_fields(KEY_FIELDS)
@click.pass_obj
def revoke(settings: Settings, /, key_id: str, fields: Fields | None) -> None:
    """Revoke a key for good. Running webs notice within seconds; the key's jobs continue."""
    from cli.database import open_database
    from jobs.use_cases import keys as use_cases

    with open_database(settings) as database:
        key = use_cases.revoke(database, key_id)
    if fields:
        fields.print(_to_dict(key, use_cases.KeyState.REVOKED))
    else:
        say(f"{key.id} ({key.name}) is revoked.")


def _to_dict(key: ApiKey, state: KeyState) -> dict[str, Any]:
    return {
        "id": key.id,
        "hint": key.hint,
        "name": key.name,
        "owner": key.owner,
        "scopes": key.scopes,
        "state": state.value,
        "max_queued": key.max_queued,
        "requests_per_minute": key.requests_per_minute,
        "created_at": rfc3339(key.created_at, "seconds"),
        "last_used_at": rfc3339(key.last_used_at, "seconds"),
        "expires_at": rfc3339(key.expires_at, "seconds"),
        "revoked_at": rfc3339(key.revoked_at, "seconds"),
    }


def _expiry(key: ApiKey) -> str:
    return f"expires {minute(key.expires_at)}" if key.expires_at else "does not expire"
