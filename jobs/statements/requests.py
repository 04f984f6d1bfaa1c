"""Statements on requests with an idempotency key.

What a request makes (a job, a file, a batch, a review) has the key in its own row, for as long as there is one, and is
found by `find_made`. What changes something is noted: `begin` comes first in the transaction that does what a request
asks for, and `end` last. So a request was done if and only if it is noted, whatever is lost in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.database_clock import utcnow_once
from jobs.errors import IdempotencyError
from jobs.models import Batch, File, Job, KeyedRequest
from jobs.statements.inserting import insert

Made = TypeVar("Made", Job, Batch, File)


@dataclass(frozen=True)
class Keyed:
    """A request with an idempotency key."""

    owner: str
    key: str
    #: SHA-256 of what was sent.
    digest: str

    def check(self, digest: str | None) -> None:
        """Check that the key was used for this request.

        Raises:
            IdempotencyError: it was used for a different one, with the given digest.
        """
        if digest != self.digest:
            raise IdempotencyError


def columns(request: Keyed | None) -> dict[str, str | None]:
    """Return the columns of what a request makes, by which the same request finds it."""
    return {
        "idempotency_key": None if request is None else request.key,
        "request_digest": None if request is None else request.digest,
    }


def find_made(session: Session, request: Keyed | None, rows: sa.Select[Made]) -> Made | None:
    """Return what the same request has made; None if it has made nothing, or has no key.

    Args:
        session: in a transaction.
        request: the request.
        rows: selects what it can have made.

    Raises:
        IdempotencyError: the key was used for a different request.
    """
    if request is None:
        return None
    made = session.scalar(rows.filter_by(owner=request.owner, idempotency_key=request.key))
    if made is not None:
        request.check(made.request_digest)
    return made


def begin(connection: sa.Connection, request: Keyed | None) -> dict[str, Any] | None:
    """Note a request. Another transaction with the same request waits until this one ends.

    Args:
        connection: in the transaction that does what it asks for.
        request: None if it has no key; then it is not noted.

    Returns:
        the outcome of the same request before; None if there was none.

    Raises:
        IdempotencyError: the key was used for a different request.
    """
    if request is None:
        return None
    noted = connection.execute(
        insert(connection, KeyedRequest)
        .values(owner=request.owner, key=request.key, digest=request.digest)
        # This changes nothing. It locks the row that is there, and returns it.
        .on_conflict_do_update(index_elements=["owner", "key"], set_={"key": request.key})
        .returning(KeyedRequest.digest, KeyedRequest.outcome)
    ).one()
    return _outcome(noted, request)


def find(connection: sa.Connection, request: Keyed) -> dict[str, Any] | None:
    """Return the same as `begin`, and note nothing: for what cannot be done in a transaction.

    Raises:
        IdempotencyError: the key was used for a different request.
    """
    noted = connection.execute(
        sa.select(KeyedRequest.digest, KeyedRequest.outcome).where(
            KeyedRequest.owner == request.owner, KeyedRequest.key == request.key
        )
    ).one_or_none()
    return None if noted is None else _outcome(noted, request)


def _outcome(noted: sa.Row[str, dict[str, Any] | None], request: Keyed) -> dict[str, Any] | None:
    request.check(noted.digest)
    outcome: dict[str, Any] | None = noted.outcome
    return outcome


def end(connection: sa.Connection, request: Keyed | None, **outcome: Any) -> None:
    """Note what came of a request, unless it has no key.

    Args:
        connection: as of `begin`.
        request: as of `begin`.
        outcome: what `begin` returns for the same request from now on.
    """
    if request is not None:
        connection.execute(
            sa.update(KeyedRequest)
            .where(KeyedRequest.owner == request.owner, KeyedRequest.key == request.key)
            .values(outcome=outcome)
        )


def delete_old(connection: sa.Connection, seconds: float, *, limit: int) -> int:
    """Delete up to ``limit`` requests that are older than ``seconds``, the oldest first; return how many."""
    oldest = (
        sa.select(KeyedRequest.owner, KeyedRequest.key)
        .where(KeyedRequest.created_at < utcnow_once(-seconds))
        .order_by(KeyedRequest.created_at)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    key = sa.tuple_(KeyedRequest.owner, KeyedRequest.key)
    return connection.execute(sa.delete(KeyedRequest).where(key.in_(oldest))).rowcount
