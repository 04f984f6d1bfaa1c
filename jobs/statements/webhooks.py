"""Statements on webhook endpoints. The owner None stands for all owners."""

from __future__ import annotations

import random
from collections.abc import Collection
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.database_clock import utcnow
from jobs.models import WebhookEndpoint
from jobs.page_request import PageRequest
from jobs.statements.owners import is_owned
from jobs.statements.paging import read_page

#: The condition of endpoints that events are sent to.
IS_ENABLED = WebhookEndpoint.disabled_at.is_(None)


def add(session: Session, **values: Any) -> WebhookEndpoint:
    """Add an endpoint; return it."""
    endpoint = WebhookEndpoint(**values)
    session.add(endpoint)
    session.flush()
    session.refresh(endpoint)
    return endpoint


def get(session: Session, owner: str | None, endpoint_id: str) -> WebhookEndpoint | None:
    """Return an owner's endpoint; None if the owner has no such endpoint."""
    owned = is_owned(WebhookEndpoint.owner, owner)
    return session.scalar(
        sa.select(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, owned)
    )


def get_all(
    connection: sa.Connection, endpoint_ids: Collection[str]
) -> list[sa.Row[*tuple[Any, ...]]]:
    """Return URLs and secrets of endpoints, in random order: none of them always comes last."""
    rows = connection.execute(
        sa.select(
            WebhookEndpoint.id,
            WebhookEndpoint.url,
            WebhookEndpoint.secret,
            WebhookEndpoint.previous_secret,
            WebhookEndpoint.previous_secret_expires_at,
        ).where(WebhookEndpoint.id.in_(endpoint_ids))
    ).all()
    return random.sample(rows, len(rows))


def count(session: Session, owner: str) -> int:
    """Count an owner's endpoints."""
    query = sa.select(sa.func.count()).where(WebhookEndpoint.owner == owner)
    return session.scalar(query) or 0


def list_page(
    session: Session, owner: str, page: PageRequest, last: WebhookEndpoint | None
) -> tuple[list[WebhookEndpoint], bool]:
    """Return a page of an owner's endpoints by age, and whether more follow.

    Args:
        session: of the unit of work.
        owner: of the endpoints.
        page: which page.
        last: the endpoint with the id ``page.after``; None for the first page.
    """
    return read_page(session, WebhookEndpoint, [WebhookEndpoint.owner == owner], page, last)


def list_all(session: Session, owner: str | None) -> list[WebhookEndpoint]:
    """Return the endpoints of an owner (None: of all owners), the oldest first."""
    query = sa.select(WebhookEndpoint).where(is_owned(WebhookEndpoint.owner, owner))
    return list(session.scalars(query.order_by(WebhookEndpoint.created_at, WebhookEndpoint.id)))


def update(session: Session, endpoint: WebhookEndpoint, **values: Any) -> None:
    """Set columns of an endpoint. SQL expressions are evaluated by the database."""
    session.execute(
        sa.update(WebhookEndpoint).where(WebhookEndpoint.id == endpoint.id).values(**values)
    )
    session.refresh(endpoint)


def delete(connection: sa.Connection, owner: str | None, endpoint_id: str) -> bool:
    """Delete an owner's endpoint with its deliveries; return whether there was one."""
    owned = is_owned(WebhookEndpoint.owner, owner)
    statement = sa.delete(WebhookEndpoint).where(WebhookEndpoint.id == endpoint_id, owned)
    return bool(connection.execute(statement).rowcount)


def disable(connection: sa.Connection, endpoint_ids: Collection[str]) -> None:
    """Disable endpoints, unless they are."""
    connection.execute(
        sa.update(WebhookEndpoint)
        .where(WebhookEndpoint.id.in_(sorted(endpoint_ids)), IS_ENABLED)
        .values(disabled_at=utcnow())
    )


def find_disabled(connection: sa.Connection, endpoint_ids: Collection[str]) -> set[str]:
    """Return those of some endpoints that are disabled."""
    query = sa.select(WebhookEndpoint.id).where(
        WebhookEndpoint.id.in_(sorted(endpoint_ids)), sa.not_(IS_ENABLED)
    )
    return set(connection.scalars(query))
