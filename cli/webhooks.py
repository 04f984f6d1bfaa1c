"""`helixq webhooks`: endpoints that are told when jobs end, and what was delivered to them.

What uses the database is imported by the commands themselves: that takes half a second, which their help and
completion do without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli.errors import ExpectedError
from cli.fields import Command, Fields, json_fields
from cli.plain import say
from cli.tables import minute, print_table
from jobs.enums import ANONYMOUS, DeliveryStatus
from jobs.webhooks import signing
from jobs.webhooks.events import EVENT_TYPES

if TYPE_CHECKING:
    from jobs.models import WebhookDelivery, WebhookEndpoint
    from jobs.settings import Settings

F = TypeVar("F", bound=Callable[..., Any])

_of_endpoint = json_fields("WebhookEndpoint", "owner")
_of_secret = json_fields("NewWebhookSecret", "owner")
_of_delivery = json_fields("WebhookDelivery")


def _events(which: str) -> Callable[[F], F]:
    """Return the option for the types of events."""
    help_ = f"{which}, separated by commas: {', '.join(EVENT_TYPES)}."
    return click.option("--events", metavar="TYPE,…", help=help_)


@click.command(cls=Command)
@click.argument("url")
@_events("Only these types of events (default: all)")
@click.option(
    "--owner", default=ANONYMOUS, show_default=True, help="The owner of the jobs and batches."
)
@click.option("--name", help="What the endpoint is for (default: the URL).")
@_of_secret
@click.pass_obj
def create(
    settings: Settings,
    /,
    url: str,
    events: str | None,
    owner: str,
    name: str | None,
    fields: Fields | None,
) -> None:
    """Register URL and print the secret that signs its webhooks. It is shown this once."""
    from cli.database import open_database
    from jobs.use_cases import webhooks as use_cases

    with open_database(settings) as database:
        endpoint = use_cases.create(
            database,
            owner,
            url=url,
            name=name or url[: use_cases.MAX_NAME],
            event_types=_types(events) or EVENT_TYPES,
            allowed=settings.webhook_allowed_networks,
        )
    _print_secret(endpoint, fields=fields)


@click.command("list", cls=Command)
@click.option("--owner", help="Only those of this owner (default: all).")
@_of_endpoint
@click.pass_obj
def list_(settings: Settings, /, owner: str | None, fields: Fields | None) -> None:
    """List the endpoints."""
    from cli.database import open_database
    from jobs.use_cases import webhooks as use_cases

    with open_database(settings) as database:
        endpoints = use_cases.list_all_endpoints(database, owner)
    if fields:
        fields.print([_endpoint(endpoint) for endpoint in endpoints])
        return
    rows = [
        (e.id, e.name, e.owner, e.url, _state(e), f"{len(e.event_types)}", minute(e.created_at))
        for e in endpoints
    ]
    print_table(("id", "name", "owner", "url", "state", "events", "created"), rows)


@click.command(cls=Command)
@click.argument("endpoint_id", metavar="ID")
@_of_endpoint
@click.pass_obj
def show(settings: Settings, /, endpoint_id: str, fields: Fields | None) -> None:
    """Show an endpoint."""
    from cli.database import open_database
    from jobs.use_cases import webhooks as use_cases

    with open_database(settings) as database:
        endpoint = use_cases.get(database, None, endpoint_id)
    _print_endpoint(endpoint, fields=fields)


@click.command(cls=Command)
@click.argument("endpoint_id", metavar="ID")
@click.option("--url", help="A new URL.")
@click.option("--name", help="A new name.")
@_events("New types of events")
@_of_endpoint
@click.pass_obj
def update(
    settings: Settings,
    /,
    endpoint_id: str,
    url: str | None,
    name: str | None,
    events: str | None,
    fields: Fields | None,
) -> None:
    """Change an endpoint, and enable it if it is disabled."""
    from cli.database import open_database
    from jobs.use_cases import webhooks as use_cases

    with open_database(settings) as database:
        endpoint = use_cases.update(
            database,
            None,
            endpoint_id,
            url=url,
            name=name,
            event_types=_types(events),
            allowed=settings.webhook_allowed_networks,
        )
    _print_endpoint(endpoint, fields=fields)


@click.command(cls=Command)
@click.argument("endpoint_id", metavar="ID")
@json_fields("DeletedWebhookEndpoint")
@click.pass_obj
def delete(settings: Settings, /, endpoint_id: str, fields: Fields | None) -> None:
    """Delete an endpoint with its deliveries."""
    from cli.database import open_database
    from jobs.protocol.webhooks import deleted_object
    from jobs.use_cases import webhooks as use_cases

    with open_database(settings) as database:
        use_cases.delete(database, None, endpoint_id)
    if fields:
        fields.print(deleted_object(endpoint_id))
    else:
        click.echo(f"{endpoint_id} is deleted.")


@click.command(cls=Command)
@click.argument("endpoint_id", metavar="ID")
@click.option(
    "--keep-old",
    is_flag=True,
    help="For 24 hours, sign with both secrets, so that the receiver can be changed meanwhile.",
)
@_of_secret
@click.pass_obj
def rotate(settings: Settings, /, endpoint_id: str, keep_old: bool, fields: Fields | None) -> None:
    """Give an endpoint a new secret and print it. It is shown this once."""
    from cli.database import open_database
    from jobs.use_cases import webhooks as use_cases

    with open_database(settings) as database:
        endpoint = use_cases.rotate_secret(database, None, endpoint_id, keep_previous=keep_old)
    _print_secret(endpoint, fields=fields)


@click.command(cls=Command)
@click.argument("endpoint_id", metavar="ID")
@click.option(
    "--event",
    "event_type",
    type=click.Choice(EVENT_TYPES),
    default=EVENT_TYPES[0],
    show_default=True,
    help="The type of the event.",
)
@json_fields("WebhookTest")
@click.pass_obj
def ping(settings: Settings, /, endpoint_id: str, event_type: str, fields: Fields | None) -> None:
    """Send a test event to an endpoint, from this machine, and print the reply's status."""
    from cli.database import open_database
    from jobs import webhook_delivery
    from jobs.protocol.webhooks import sample_result

    with open_database(settings) as database:
        outcome = webhook_delivery.send_sample(
            database, None, endpoint_id, event_type, settings.webhook_allowed_networks
        )
    if outcome.error is not None:
        raise ExpectedError(outcome.error)
    if fields:
        fields.print(sample_result(endpoint_id, event_type, outcome))
    else:
        click.echo(f"{outcome.status_code} after {outcome.duration * 1000:.0f} ms")


@click.command(cls=Command)
@click.argument("endpoint_id", metavar="ID")
@click.option(
    "--status",
    type=click.Choice([status.value for status in DeliveryStatus]),
    help="Only deliveries with this status.",
)
@click.option(
    "--limit",
    type=click.IntRange(1, 1000),
    default=20,
    show_default=True,
    help="How many deliveries.",
)
@_of_delivery
@click.pass_obj
def deliveries(
    settings: Settings, /, endpoint_id: str, status: str | None, limit: int, fields: Fields | None
) -> None:
    """List the deliveries to an endpoint, the newest first."""
    from cli.database import open_database
    from jobs.page_request import PageRequest
    from jobs.protocol.webhooks import delivery_object
    from jobs.use_cases import deliveries as delivery_cases

    with open_database(settings) as database:
        found, _ = delivery_cases.list_deliveries(
            database,
            None,
            endpoint_id,
            PageRequest(limit),
            None if status is None else DeliveryStatus(status),
        )
    if fields:
        fields.print([delivery_object(delivery) for delivery in found])
    else:
        _print_deliveries(found)


@click.command(cls=Command)
@click.argument("delivery_id", metavar="ID")
@_of_delivery
@click.pass_obj
def redeliver(settings: Settings, /, delivery_id: str, fields: Fields | None) -> None:
    """Send an event again. ID is a delivery's; a worker or `helixq maintain` sends it."""
    from cli.database import open_database
    from jobs.protocol.webhooks import delivery_object
    from jobs.use_cases import deliveries as delivery_cases

    with open_database(settings) as database:
        delivery = delivery_cases.redeliver(database, None, delivery_id)
    if fields:
        fields.print(delivery_object(delivery))
    else:
        click.echo(f"{delivery.id} is {delivery.status.value}.")


def _types(events: str | None) -> Sequence[str] | None:
    return None if events is None else [part.strip() for part in events.split(",")]


def _endpoint(endpoint: WebhookEndpoint, *, with_secret: bool = False) -> dict[str, Any]:
    from jobs.protocol.webhooks import endpoint_object

    return {**endpoint_object(endpoint, with_secret=with_secret), "owner": endpoint.owner}


def _state(endpoint: WebhookEndpoint) -> str:
    return "enabled" if endpoint.disabled_at is None else "disabled"


def _print_secret(endpoint: WebhookEndpoint, *, fields: Fields | None) -> None:
    if fields:
        fields.print(_endpoint(endpoint, with_secret=True))
        return
    click.echo(
        f"{endpoint.id}: {endpoint.url}, events of the owner {endpoint.owner}. "
        "Keep the secret now, it is not shown again:",
        err=True,
    )
    click.echo(endpoint.secret)


def _print_endpoint(endpoint: WebhookEndpoint, *, fields: Fields | None) -> None:
    if fields:
        fields.print(_endpoint(endpoint))
        return
    rows = {
        "id": endpoint.id,
        "name": endpoint.name,
        "owner": endpoint.owner,
        "url": endpoint.url,
        "secret": signing.hint(endpoint.secret),
        "state": _state(endpoint),
        "events": ", ".join(endpoint.event_types),
        "created": minute(endpoint.created_at),
        "updated": minute(endpoint.updated_at),
    }
    for name, value in rows.items():
        say(f"{name:8}{value}")


def _print_deliveries(found: Iterable[WebhookDelivery]) -> None:
    rows = []
    for delivery in found:
        last = delivery.attempts[-1] if delivery.attempts else {}
        duration = f"{last['duration']:.2f} s" if last else "-"
        result = last.get("error") or last.get("status_code") or "-"
        rows.append(
            (
                delivery.id,
                delivery.event_type,
                delivery.object_id,
                delivery.status.value,
                str(len(delivery.attempts)),
                duration,
                minute(delivery.next_attempt_at),
                str(result),
            )
        )
    heads = ("id", "event", "object", "status", "attempts", "last took", "next attempt", "result")
    print_table(heads, rows)
