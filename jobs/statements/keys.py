"""Statements on API keys, and on the browsers that are logged in with them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.database_clock import utcnow, utcnow_once
from jobs.models import ApiKey, LoginSession

_VALID = sa.and_(
    ApiKey.revoked_at.is_(None),
    sa.or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > utcnow()),
)
#: Parameter: ``digest``.
_BY_DIGEST = sa.select(ApiKey).where(ApiKey.digest == sa.bindparam("digest"), _VALID)
#: Parameter: ``digest``, of a session.
_BY_SESSION = (
    sa.select(ApiKey)
    .join(LoginSession, LoginSession.key_id == ApiKey.id)
    .where(
        LoginSession.digest == sa.bindparam("digest"), LoginSession.expires_at > utcnow(), _VALID
    )
)


def add(session: Session, *, expires_in: float | None, **values: Any) -> ApiKey:
    """Add a key; return it.

    Args:
        expires_in: in seconds; None for never.
        values: of the other columns.
    """
    expires_at = None if expires_in is None else utcnow(expires_in)
    key = ApiKey(expires_at=expires_at, **values)
    session.add(key)
    session.flush()
    session.refresh(key)
    return key


def any_of_owner(session: Session, owner: str) -> bool:
    """Return whether an owner has a key, revoked and expired ones included."""
    return bool(session.scalar(sa.select(sa.exists().where(ApiKey.owner == owner))))


def any_valid(connection: sa.Connection) -> bool:
    """Return whether any key can be used."""
    return bool(connection.scalar(sa.select(sa.exists().where(_VALID))))


def list_all(session: Session) -> list[tuple[ApiKey, bool]]:
    """Return all keys, the oldest first, each with whether it has expired."""
    expired = sa.func.coalesce(ApiKey.expires_at <= utcnow(), sa.false())
    query = sa.select(ApiKey, expired).order_by(ApiKey.created_at, ApiKey.id)
    return [(key, bool(has_expired)) for key, has_expired in session.execute(query)]


def get(session: Session, key_id: str) -> ApiKey | None:
    """Return a key, revoked and expired ones included."""
    return session.get(ApiKey, key_id)


def find_valid(session: Session, digest: str) -> ApiKey | None:
    """Return the key with a digest, unless it was revoked or has expired."""
    return session.scalar(_BY_DIGEST, {"digest": digest})


def find_by_session(session: Session, digest: str) -> ApiKey | None:
    """Return the key of a login session, unless either has ended."""
    return session.scalar(_BY_SESSION, {"digest": digest})


def revoke(connection: sa.Connection, key_id: str) -> None:
    """Revoke a key, and end its login sessions. A key that was revoked before does not change."""
    connection.execute(
        sa.update(ApiKey)
        .where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None))
        .values(revoked_at=utcnow())
    )
    connection.execute(sa.delete(LoginSession).where(LoginSession.key_id == key_id))


def mark_used(connection: sa.Connection, key_ids: Collection[str], interval: float) -> None:
    """Record that keys are in use, unless that was recorded less than ``interval`` seconds ago."""
    stale = sa.or_(ApiKey.last_used_at.is_(None), ApiKey.last_used_at < utcnow_once(-interval))
    connection.execute(
        sa.update(ApiKey).where(ApiKey.id.in_(sorted(key_ids)), stale).values(last_used_at=utcnow())
    )


def add_session(connection: sa.Connection, digest: str, key_id: str, expires_in: float) -> None:
    """Add a login session that ends in ``expires_in`` seconds."""
    connection.execute(
        sa.insert(LoginSession).values(digest=digest, key_id=key_id, expires_at=utcnow(expires_in))
    )


def delete_session(connection: sa.Connection, digest: str) -> None:
    """End a login session."""
    connection.execute(sa.delete(LoginSession).where(LoginSession.digest == digest))


def delete_expired_sessions(connection: sa.Connection) -> None:
    """Delete the login sessions that have expired."""
    connection.execute(sa.delete(LoginSession).where(LoginSession.expires_at < utcnow_once()))
