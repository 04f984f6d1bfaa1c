"""Webhook endpoints: registering, listing, changing and deleting them, and rotating their secrets."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy.orm import Session

from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.errors import UserError
from jobs.ids import is_id
from jobs.models import WebhookEndpoint
from jobs.page_request import PageRequest
from jobs.statements import requests, webhooks
from jobs.statements.requests import Keyed
from jobs.transient import retry_on_conflict
from jobs.webhooks import signing, targets
from jobs.webhooks.events import EVENT_TYPES
from jobs.webhooks.targets import Network

MAX_NAME = 100
#: The maximum number of endpoints of an owner: each job's end makes a row for each.
MAX_ENDPOINTS = 20
#: Seconds for which the previous secret may sign too: 24 hours, as in OpenAI's API.
ROTATION = 86_400.0


class EndpointNotFoundError(UserError):
    """The owner has no such endpoint."""

    def __init__(self, endpoint_id: str) -> None:
        super().__init__(f"No such webhook endpoint: {endpoint_id!r}.")


class EndpointError(UserError):
    """An endpoint cannot be made or changed like this. The message says why."""

    def __init__(self, message: str, param: str) -> None:
        """
        Args:
            message: one sentence.
            param: what is wrong: ``url``, ``name`` or ``event_types``.
        """
        super().__init__(message)
        self.param = param


@retry_on_conflict
def create(
    database: Database,
    owner: str,
    *,
    url: str,
    name: str,
    event_types: Collection[str],
    allowed: Collection[Network],
    keyed: Keyed | None = None,
) -> WebhookEndpoint:
    """Register an endpoint, with a new secret.

    Args:
        database: of the endpoints.
        owner: whose jobs it is told about.
        url: receives the webhooks.
        name: says what it is for.
        event_types: some of `EVENT_TYPES`, at least one.
        allowed: networks with addresses that are allowed though they are not public.
        keyed: the request, if it has an idempotency key.

    Returns:
        the endpoint, or the one that the same request made before.

    Raises:
        EndpointError: the URL, the name or the types are wrong, or the owner has `MAX_ENDPOINTS` already.
        IdempotencyError: the key was used for a different request.
    """
    values = _checked(allowed, url=url, name=name, event_types=event_types)
    with database.write_session() as session:
        connection = session.connection()
        made = requests.begin(connection, keyed)
        if made is not None and (there := webhooks.get(session, owner, made["id"])) is not None:
            return there
        if webhooks.count(session, owner) >= MAX_ENDPOINTS:
            raise EndpointError(f"an owner has at most {MAX_ENDPOINTS} webhook endpoints", "url")
        endpoint = webhooks.add(
            session,
            id=f"we_{secrets.token_hex(16)}",
            owner=owner,
            secret=signing.new_secret(),
            **values,
        )
        requests.end(connection, keyed, id=endpoint.id)
        return endpoint


@retry_on_conflict
def update(
    database: Database,
    owner: str | None,
    endpoint_id: str,
    *,
    allowed: Collection[Network],
    keyed: Keyed | None = None,
    **changes: Any,
) -> WebhookEndpoint:
    """Change an endpoint, and enable it if it is disabled.

    Args:
        database: of the endpoints.
        owner: of the endpoint; None for any.
        endpoint_id: of the endpoint.
        allowed: networks with addresses that are allowed though they are not public.
        keyed: the request, if it has an idempotency key. One that was done before changes nothing.
        changes: new values of ``url``, ``name`` and ``event_types``.

    Raises:
        EndpointNotFoundError: the owner has no such endpoint.
        EndpointError: a new value is wrong.
        IdempotencyError: the key was used for a different request.
    """
    values = _checked(allowed, **changes)
    with database.write_session() as session:
        connection = session.connection()
        is_new = requests.begin(connection, keyed) is None
        endpoint = get_endpoint(session, owner, endpoint_id)
        if is_new:
            webhooks.update(session, endpoint, **values, disabled_at=None, updated_at=utcnow())
            requests.end(connection, keyed)
        return endpoint


@retry_on_conflict
def rotate_secret(
    database: Database,
    owner: str | None,
    endpoint_id: str,
    *,
    keep_previous: bool,
    keyed: Keyed | None = None,
) -> WebhookEndpoint:
    """Give an endpoint a new secret.

    Args:
        database: of the endpoints.
        owner: of the endpoint; None for any.
        endpoint_id: of the endpoint.
        keep_previous: whether the secret so far signs too, for `ROTATION` seconds.
        keyed: the request, if it has an idempotency key. One that was done before changes nothing.

    Raises:
        EndpointNotFoundError: the owner has no such endpoint.
        IdempotencyError: the key was used for a different request.
    """
    with database.write_session() as session:
        connection = session.connection()
        is_new = requests.begin(connection, keyed) is None
        endpoint = get_endpoint(session, owner, endpoint_id)
        if is_new:
            webhooks.update(
                session,
                endpoint,
                secret=signing.new_secret(),
                previous_secret=endpoint.secret if keep_previous else None,
                previous_secret_expires_at=utcnow(ROTATION) if keep_previous else None,
                updated_at=utcnow(),
            )
            requests.end(connection, keyed)
        return endpoint


def get(database: Database, owner: str | None, endpoint_id: str) -> WebhookEndpoint:
    """Return an owner's endpoint.

    Raises:
        EndpointNotFoundError: the owner (None: any) has no such endpoint.
    """
    with database.read_session() as session:
        return get_endpoint(session, owner, endpoint_id)


def list_endpoints(
    database: Database, owner: str, page: PageRequest
) -> tuple[list[WebhookEndpoint], bool]:
    """Return a page of an owner's endpoints by age, and whether more follow.

    Raises:
        CursorError: the owner has no endpoint with the id ``page.after``.
    """
    with database.read_session() as session, page.check_after(EndpointNotFoundError):
        last = None if page.after is None else get_endpoint(session, owner, page.after)
        return webhooks.list_page(session, owner, page, last)


def list_all_endpoints(database: Database, owner: str | None) -> list[WebhookEndpoint]:
    """Return the endpoints of an owner (None: of all owners), the oldest first."""
    with database.read_session() as session:
        return webhooks.list_all(session, owner)


@retry_on_conflict
def delete(database: Database, owner: str | None, endpoint_id: str) -> None:
    """Delete an endpoint with its deliveries, sent or not.

    Raises:
        EndpointNotFoundError: the owner (None: any) has no such endpoint.
    """
    with database.write() as connection:
        if not (is_id(endpoint_id, "we_") and webhooks.delete(connection, owner, endpoint_id)):
            raise EndpointNotFoundError(endpoint_id)


def get_endpoint(session: Session, owner: str | None, endpoint_id: str) -> WebhookEndpoint:
    """Do the same as `get`, in a unit of work."""
    endpoint = webhooks.get(session, owner, endpoint_id) if is_id(endpoint_id, "we_") else None
    if endpoint is None:
        raise EndpointNotFoundError(endpoint_id)
    return endpoint


def _checked(
    allowed: Collection[Network],
    *,
    url: str | None = None,
    name: str | None = None,
    event_types: Collection[str] | None = None,
) -> dict[str, Any]:
    """Check columns of an endpoint; return those that are given."""
    values: dict[str, Any] = {}
    if url is not None:
        try:
            targets.check(url, allowed)
        except targets.TargetError as error:
            raise EndpointError(str(error), "url") from error
        values["url"] = url
    if name is not None:
        if not 1 <= len(name) <= MAX_NAME or not name.isprintable():
            raise EndpointError(
                f"the name of a webhook endpoint has 1 to {MAX_NAME} printable characters", "name"
            )
        values["name"] = name
    if event_types is not None:
        values["event_types"] = _checked_types(event_types)
    return values


def _checked_types(event_types: Collection[str]) -> Sequence[str]:
    """Check types of events; return them in the order of `EVENT_TYPES`."""
    choices = ", ".join(EVENT_TYPES)
    if not event_types:
        raise EndpointError(f"at least one type of event is needed: {choices}", "event_types")
    for event_type in event_types:
        if event_type not in EVENT_TYPES:
            raise EndpointError(
                f"{event_type!r} is not a type of event here; there are {choices}", "event_types"
            )
    return [event_type for event_type in EVENT_TYPES if event_type in event_types]
