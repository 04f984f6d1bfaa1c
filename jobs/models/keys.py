"""API keys, and the browsers that have logged in with one."""

from __future__ import annotations

import datetime as dt

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from jobs.database_clock import utcnow
from jobs.models.base import Base


class ApiKey(Base):
    """An API key. Its row stays when it is revoked: the histories of jobs name it."""

    __tablename__ = "api_keys"

    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    #: SHA-256 of the secret (`jobs.use_cases.keys`).
    digest: Mapped[str] = mapped_column(sa.String(64), unique=True)
    #: The first characters of the secret, by which people recognize it.
    hint: Mapped[str] = mapped_column(sa.String(16))
    name: Mapped[str] = mapped_column(sa.Text)
    #: Owns the jobs that are submitted with it (`Job.owner`).
    owner: Mapped[str] = mapped_column(sa.String(40))
    #: The values of `Scope`.
    scopes: Mapped[list[str]]
    #: The maximum number of queued jobs that were submitted with it; null for no maximum.
    max_queued: Mapped[int | None]
    #: The maximum number of requests with it; null for no maximum.
    requests_per_minute: Mapped[int | None]
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow())
    #: Written at most once a minute.
    last_used_at: Mapped[dt.datetime | None]
    expires_at: Mapped[dt.datetime | None]
    revoked_at: Mapped[dt.datetime | None]


class LoginSession(Base):
    """A browser in which somebody has logged in with an API key."""

    __tablename__ = "login_sessions"

    #: SHA-256 of the secret in the browser's cookie.
    digest: Mapped[str] = mapped_column(sa.String(64), primary_key=True)
    key_id: Mapped[str] = mapped_column(sa.ForeignKey("api_keys.id"))
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow())
    expires_at: Mapped[dt.datetime] = mapped_column(index=True)
