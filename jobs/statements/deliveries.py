"""Statements on the deliveries of events to webhook endpoints: an outbox.

A process that sends a delivery takes it with a lease, as workers take stages: ``claims`` is the fencing
token, and ``next_attempt_at`` the end of the lease. If the process dies, the delivery is due again then.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.database_clock import utcnow, utcnow_once
from jobs.ids import new_id
from jobs.models import DeliveryStatus, WebhookDelivery, WebhookEndpoint
from jobs.page_request import PageRequest
from jobs.statements.owners import is_owned
from jobs.statements.paging import read_page
from jobs.statements.webhooks import IS_ENABLED
from jobs.timing import FUTURE_MARGIN
from jobs.webhooks import retries
from jobs.webhooks.retries import GIVE_UP_AFTER

#: Parameter: ``owner``.
_ENDPOINTS = sa.select(WebhookEndpoint.id, WebhookEndpoint.event_types).where(
    WebhookEndpoint.owner == sa.bindparam("owner"), IS_ENABLED
)
#: Parameters: the other columns.
_ADD = sa.insert(WebhookDelivery).values(
    status=DeliveryStatus.PENDING,
    created_at=utcnow(),
    next_attempt_at=utcnow(),
    give_up_at=utcnow(GIVE_UP_AFTER),
    claims=0,
    failures=0,
    attempts=[],
)


def add_events(connection: sa.Connection, owner: str, events: Iterable[tuple[str, str]]) -> None:
    """Add events to the outbox, for each endpoint of the owner that wants their types.

    Args:
        connection: in the transaction that the events tell about.
        owner: of the endpoints.
        events: of each, the type, such as ``response.completed``, and the id of what it is about, such as a job.
    """
    endpoints = connection.execute(_ENDPOINTS, {"owner": owner}).all()
    rows = [
        {
            "id": f"whd_{secrets.token_hex(16)}",
            "endpoint_id": endpoint.id,
            "event_id": event_id,
            "event_type": event_type,
            "object_id": object_id,
        }
        for event_id, (event_type, object_id) in ((new_id("evt_"), event) for event in events)
        for endpoint in endpoints
        if event_type in endpoint.event_types
    ]
    if rows:
        connection.execute(_ADD, rows)


def delete_of_objects(connection: sa.Connection, object_ids: Collection[str]) -> None:
    """Delete the deliveries of events about some objects, sent or not."""
    connection.execute(
        sa.delete(WebhookDelivery).where(WebhookDelivery.object_id.in_(list(object_ids)))
    )


#: When the next delivery of an endpoint is due. An ``EXISTS`` with a comparison would have PostgreSQL scan
#: the table as long as all of it has been delivered: it knows no times to compare with.
_NEXT = (
    sa.select(WebhookDelivery.next_attempt_at)
    .where(
        WebhookDelivery.endpoint_id == WebhookEndpoint.id,
        WebhookDelivery.next_attempt_at.is_not(None),
    )
    .order_by(WebhookDelivery.next_attempt_at)
    .limit(1)
    .scalar_subquery()
)
_DUE_ENDPOINTS = sa.select(WebhookEndpoint.id).where(IS_ENABLED, utcnow_once() >= _NEXT)


def find_due_endpoints(connection: sa.Connection) -> list[str]:
    """Return the enabled endpoints with deliveries that are due: one look at an index each."""
    return list(connection.scalars(_DUE_ENDPOINTS))


def claim(
    connection: sa.Connection, endpoint_id: str, *, limit: int, lease: float
) -> Sequence[sa.Row[*tuple[Any, ...]]]:
    """Take deliveries of an endpoint that are due, those first that have been due for longest.

    Args:
        connection: in a transaction that writes.
        endpoint_id: of an endpoint.
        limit: the maximum number of deliveries.
        lease: seconds for which no other process sends them.
    """
    due = (
        sa.select(WebhookDelivery.id)
        .where(
            WebhookDelivery.endpoint_id == endpoint_id,
            WebhookDelivery.next_attempt_at <= utcnow_once(),
        )
        .order_by(WebhookDelivery.next_attempt_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    return connection.execute(
        sa.update(WebhookDelivery)
        .where(WebhookDelivery.id.in_(due))
        .values(
            status=DeliveryStatus.SENDING,
            claims=WebhookDelivery.claims + 1,
            next_attempt_at=utcnow(lease),
        )
        .returning(
            WebhookDelivery.id,
            WebhookDelivery.endpoint_id,
            WebhookDelivery.claims,
            WebhookDelivery.event_id,
            WebhookDelivery.event_type,
            WebhookDelivery.object_id,
            WebhookDelivery.created_at,
            WebhookDelivery.give_up_at,
            WebhookDelivery.failures,
            WebhookDelivery.attempts,
            utcnow().label("now"),
        )
    ).all()


def give_back(connection: sa.Connection, delivery_id: str, claims: int, **values: Any) -> bool:
    """End the attempt of a delivery, unless another process took it meanwhile.

    Args:
        connection: in a transaction that writes.
        delivery_id: of the delivery.
        claims: its fencing token.
        values: new values of its columns.

    Returns:
        False if it was taken or deleted: then nothing is changed.
    """
    statement = (
        sa.update(WebhookDelivery)
        .where(
            WebhookDelivery.id == delivery_id,
            WebhookDelivery.claims == claims,
            WebhookDelivery.status == DeliveryStatus.SENDING,
        )
        .values(**values)
    )
    return bool(connection.execute(statement).rowcount)


def give_up(connection: sa.Connection, endpoint_ids: Collection[str]) -> None:
    """End the deliveries of endpoints that wait for an attempt as failed."""
    connection.execute(
        sa.update(WebhookDelivery)
        .where(
            WebhookDelivery.endpoint_id.in_(sorted(endpoint_ids)),
            WebhookDelivery.next_attempt_at.is_not(None),
            WebhookDelivery.status == DeliveryStatus.PENDING,
        )
        .values(status=DeliveryStatus.FAILED, next_attempt_at=None, finished_at=utcnow())
    )


def correct_future_times(connection: sa.Connection, *, lease: float, failed: bool) -> None:
    """Let deliveries whose times the database's clock has not reached yet be due as if these were written now.

    Args:
        connection: in a transaction that writes.
        lease: seconds for which a process holds a delivery.
        failed: whether to correct those that have failed, too. What a receiver asked for with ``Retry-After`` counts no
            more then: nothing tells it from a clock that was set back.
    """
    count = range(retries.MAX_GROWTH if failed else 1)
    wait = sa.case(
        (WebhookDelivery.status == DeliveryStatus.SENDING, lease),
        *((WebhookDelivery.failures == n, retries.longest_delay(n)) for n in count),
        else_=retries.longest_delay(retries.MAX_GROWTH),
    )
    connection.execute(
        sa.update(WebhookDelivery)
        .where(
            WebhookDelivery.next_attempt_at.is_not(None),
            WebhookDelivery.next_attempt_at > utcnow(wait + FUTURE_MARGIN),
        )
        .values(next_attempt_at=utcnow(wait))
    )


def get(session: Session, owner: str | None, delivery_id: str) -> WebhookDelivery | None:
    """Return a delivery to an owner's endpoint; None if there is none. The owner None is any."""
    query = (
        sa.select(WebhookDelivery)
        .join(WebhookEndpoint, WebhookEndpoint.id == WebhookDelivery.endpoint_id)
        .where(WebhookDelivery.id == delivery_id, is_owned(WebhookEndpoint.owner, owner))
    )
    return session.scalar(query)


def list_page(
    session: Session,
    endpoint_id: str,
    page: PageRequest,
    last: WebhookDelivery | None,
    status: DeliveryStatus | None,
) -> tuple[list[WebhookDelivery], bool]:
    """Return a page of the deliveries to an endpoint by age, and whether more follow.

    Args:
        session: of the unit of work.
        endpoint_id: of the endpoint.
        page: which page.
        last: the delivery with the id ``page.after``; None for the first page.
        status: of the deliveries; None for all.
    """
    conditions = [WebhookDelivery.endpoint_id == endpoint_id]
    if status is not None:
        conditions.append(WebhookDelivery.status == status)
    return read_page(session, WebhookDelivery, conditions, page, last)


def send_again(connection: sa.Connection, delivery_id: str) -> None:
    """Make a delivery due now, whatever came of it before, unless a process is sending it."""
    connection.execute(
        sa.update(WebhookDelivery)
        .where(WebhookDelivery.id == delivery_id, WebhookDelivery.status != DeliveryStatus.SENDING)
        .values(
            status=DeliveryStatus.PENDING,
            failures=0,
            next_attempt_at=utcnow(),
            give_up_at=utcnow(GIVE_UP_AFTER),
            finished_at=None,
        )
    )
