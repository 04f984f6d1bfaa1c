"""Delivering events to webhook endpoints: a process takes due deliveries, sends them and records the outcomes."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.errors import UserError
from jobs.ids import is_id, new_id
from jobs.models import DeliveryStatus, WebhookDelivery, WebhookEndpoint
from jobs.page_request import PageRequest
from jobs.statements import clock, deliveries, requests, webhooks
from jobs.statements.requests import Keyed
from jobs.times import rfc3339, timestamp
from jobs.transient import retry_on_conflict
from jobs.use_cases.webhooks import get_endpoint
from jobs.webhooks import retries, signing
from jobs.webhooks.outcome import GONE, Outcome

#: Seconds for which a process holds a delivery that it sends. An attempt takes 15 at most.
LEASE = 30.0
#: The maximum number of attempts of a delivery that are kept.
MAX_ATTEMPTS = 20


class DeliveryNotFoundError(UserError):
    """The owner has no such delivery."""

    def __init__(self, delivery_id: str) -> None:
        super().__init__(f"No such delivery: {delivery_id!r}.")


class EndpointDisabledError(UserError):
    """The endpoint is disabled, so nothing can be sent to it."""

    def __init__(self, endpoint_id: str) -> None:
        super().__init__(
            f"The endpoint {endpoint_id} is disabled, since its receiver replied with 410 Gone. "
            "An update of the endpoint enables it."
        )


@dataclass(frozen=True)
class Delivery:
    """The right to send an event to an endpoint, until the lease expires."""

    id: str
    endpoint_id: str
    #: The fencing token.
    claims: int
    url: str
    #: Header and body of the request.
    headers: dict[str, str]
    body: bytes
    failures: int
    attempts: list[dict[str, Any]]
    #: The database's time when it was taken.
    taken_at: dt.datetime
    give_up_at: dt.datetime


def event_body(event_id: str, event_type: str, object_id: str, created_at: dt.datetime) -> bytes:
    """Return the body of a webhook: OpenAI's event object as JSON."""
    event = {
        "id": event_id,
        "object": "event",
        "created_at": timestamp(created_at),
        "type": event_type,
        "data": {"id": object_id},
    }
    return json.dumps(event, separators=(",", ":")).encode()


@retry_on_conflict
def take(database: Database, *, room: Callable[[str], int], limit: int) -> list[Delivery]:
    """Take deliveries that are due, a few of each endpoint.

    Args:
        database: of the deliveries.
        room: returns how many more of an endpoint may be taken.
        limit: the maximum number of deliveries.
    """
    # As a rule there is nothing to do, which should lock nothing.
    with database.read() as connection:
        due = deliveries.find_due_endpoints(connection)
    endpoint_ids = [endpoint_id for endpoint_id in due if room(endpoint_id) > 0]
    if not endpoint_ids or limit < 1:
        return []
    taken: list[Delivery] = []
    with database.write() as connection:
        endpoints = webhooks.get_all(connection, endpoint_ids)
        for endpoint in endpoints:
            count = min(room(endpoint.id), limit - len(taken))
            if count > 0:
                rows = deliveries.claim(connection, endpoint.id, limit=count, lease=LEASE)
                taken += (_delivery(endpoint, row) for row in rows)
    return taken


@retry_on_conflict
def record(database: Database, outcomes: Sequence[tuple[Delivery, Outcome]]) -> None:
    """Record the outcomes of deliveries: each is delivered, due again later, or given up.

    An endpoint whose receiver is gone is disabled, and what waits for it is given up.
    """
    gone = {d.endpoint_id for d, outcome in outcomes if outcome.status_code == GONE}
    with database.write() as connection:
        if gone:
            webhooks.disable(connection, gone)
            deliveries.give_up(connection, gone)
        disabled = webhooks.find_disabled(connection, {d.endpoint_id for d, _ in outcomes})
        for delivery, outcome in outcomes:
            values = _values(delivery, outcome, disabled=delivery.endpoint_id in disabled)
            deliveries.give_back(connection, delivery.id, delivery.claims, **values)


@retry_on_conflict
def release(database: Database, unsent: Iterable[Delivery]) -> None:
    """Give back deliveries that were taken and not sent: they are due at once."""
    with database.write() as connection:
        for delivery in unsent:
            deliveries.give_back(
                connection,
                delivery.id,
                delivery.claims,
                status=DeliveryStatus.PENDING,
                next_attempt_at=utcnow(),
            )


def correct_future_times(database: Database, *, failed: bool) -> None:
    """Let deliveries that are due too late be due as if what is known of them had been written now.

    Args:
        database: of the deliveries.
        failed: whether to correct those that have failed, too: the clock was set back.
    """
    with database.write() as connection:
        deliveries.correct_future_times(connection, lease=LEASE, failed=failed)


def list_deliveries(
    database: Database,
    owner: str | None,
    endpoint_id: str,
    page: PageRequest,
    status: DeliveryStatus | None = None,
) -> tuple[list[WebhookDelivery], bool]:
    """Return a page of the deliveries to an owner's endpoint by age, and whether more follow.

    Args:
        database: of the deliveries.
        owner: of the endpoint; None for any.
        endpoint_id: of the endpoint.
        page: which page.
        status: of the deliveries; None for all.

    Raises:
        EndpointNotFoundError: the owner has no such endpoint.
        CursorError: the owner has no delivery with the id ``page.after``.
    """
    with database.read_session() as session, page.check_after(DeliveryNotFoundError):
        get_endpoint(session, owner, endpoint_id)
        last = None if page.after is None else _get(session, owner, page.after)
        return deliveries.list_page(session, endpoint_id, page, last, status)


@retry_on_conflict
def redeliver(
    database: Database, owner: str | None, delivery_id: str, keyed: Keyed | None = None
) -> WebhookDelivery:
    """Send an event again, with the same ``webhook-id``; one that is being sent is left alone.

    Args:
        database: of the delivery.
        owner: of the delivery; None for any.
        delivery_id: of the delivery.
        keyed: the request, if it has an idempotency key. One that was done before changes nothing.

    Raises:
        DeliveryNotFoundError: the owner has no such delivery.
        EndpointDisabledError: its endpoint is disabled.
        IdempotencyError: the key was used for a different request.
    """
    with database.write_session() as session:
        connection = session.connection()
        is_new = requests.begin(connection, keyed) is None
        delivery = _get(session, owner, delivery_id)
        if not is_new:
            return delivery
        if webhooks.find_disabled(connection, [delivery.endpoint_id]):
            raise EndpointDisabledError(delivery.endpoint_id)
        deliveries.send_again(connection, delivery_id)
        requests.end(connection, keyed)
        session.refresh(delivery)
        return delivery


def sample(
    database: Database, owner: str | None, endpoint_id: str, event_type: str
) -> tuple[str, dict[str, str], bytes]:
    """Return a test event for an owner's endpoint: URL, headers and body.

    Raises:
        EndpointNotFoundError: the owner (None: any) has no such endpoint.
    """
    with database.read_session() as session:
        endpoint = get_endpoint(session, owner, endpoint_id)
        now = clock.now(session.connection())
    prefix = {"response": "resp"}.get(kind := event_type.partition(".")[0], kind)
    event_id = new_id("evt_")
    body = event_body(event_id, event_type, f"{prefix}_{'0' * 32}", now)
    secrets = _secrets(endpoint, now)
    return endpoint.url, signing.headers(event_id, timestamp(now), body, secrets), body


def _get(session: Session, owner: str | None, delivery_id: str) -> WebhookDelivery:
    delivery = deliveries.get(session, owner, delivery_id) if is_id(delivery_id, "whd_") else None
    if delivery is None:
        raise DeliveryNotFoundError(delivery_id)
    return delivery


def _delivery(endpoint: sa.Row[*tuple[Any, ...]], row: sa.Row[*tuple[Any, ...]]) -> Delivery:
    body = event_body(row.event_id, row.event_type, row.object_id, row.created_at)
    # The database's clock: those of hosts may differ, and receivers refuse webhooks that are minutes old.
    sent_at = timestamp(row.now)
    return Delivery(
        id=row.id,
        endpoint_id=row.endpoint_id,
        claims=row.claims,
        url=endpoint.url,
        headers=signing.headers(row.event_id, sent_at, body, _secrets(endpoint, row.now)),
        body=body,
        failures=row.failures,
        attempts=row.attempts,
        taken_at=row.now,
        give_up_at=row.give_up_at,
    )


def _secrets(endpoint: WebhookEndpoint | sa.Row[*tuple[Any, ...]], now: dt.datetime) -> list[str]:
    """Return the secrets that sign an endpoint's webhooks, the current one first."""
    previous: str | None = endpoint.previous_secret
    expires_at: dt.datetime | None = endpoint.previous_secret_expires_at
    if previous is None or expires_at is None or expires_at <= now:
        return [endpoint.secret]
    return [endpoint.secret, previous]


def _values(delivery: Delivery, outcome: Outcome, *, disabled: bool) -> dict[str, Any]:
    """Return the columns of a delivery after an attempt."""
    attempt = {
        "at": rfc3339(delivery.taken_at),
        "status_code": outcome.status_code,
        "error": outcome.error,
        "duration": round(outcome.duration, 3),
    }
    values: dict[str, Any] = {"attempts": [*delivery.attempts, attempt][-MAX_ATTEMPTS:]}
    ended = {"next_attempt_at": None, "finished_at": utcnow()}
    if outcome.error is None:
        return {**values, **ended, "status": DeliveryStatus.DELIVERED}
    failures = delivery.failures + 1
    delay = retries.delay(failures, outcome.retry_after)
    next_attempt_at = delivery.taken_at + dt.timedelta(seconds=outcome.duration + delay)
    if disabled or next_attempt_at > delivery.give_up_at:
        return {**values, **ended, "status": DeliveryStatus.FAILED, "failures": failures}
    return {
        **values,
        "status": DeliveryStatus.PENDING,
        "failures": failures,
        "next_attempt_at": utcnow(delay),
    }
