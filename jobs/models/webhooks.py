"""Webhook endpoints, and the deliveries of events to them."""

from __future__ import annotations

import datetime as dt
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from jobs.database_clock import utcnow
from jobs.enums import DeliveryStatus
from jobs.models.base import Base, enum, partial


class WebhookEndpoint(Base):
    """A URL that is told about events of an owner's jobs."""

    __tablename__ = "webhook_endpoints"

    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    owner: Mapped[str] = mapped_column(sa.String(40), index=True)
    name: Mapped[str] = mapped_column(sa.Text)
    url: Mapped[str] = mapped_column(sa.Text)
    event_types: Mapped[list[str]]
    #: Signs its webhooks (`jobs.webhooks.signing`), so it cannot be stored as a hash.
    secret: Mapped[str] = mapped_column(sa.String(128))
    #: Signs them too, until it expires.
    previous_secret: Mapped[str | None] = mapped_column(sa.String(128))
    previous_secret_expires_at: Mapped[dt.datetime | None]
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow())
    updated_at: Mapped[dt.datetime] = mapped_column(default=utcnow())
    #: Set if the receiver replied that it is gone: nothing is sent until the endpoint is updated.
    disabled_at: Mapped[dt.datetime | None]


class WebhookDelivery(Base):
    """An event that is to be sent to an endpoint, or was. The rows are an outbox."""

    __tablename__ = "webhook_deliveries"

    id: Mapped[str] = mapped_column(sa.String(40), primary_key=True)
    endpoint_id: Mapped[str] = mapped_column(
        sa.ForeignKey("webhook_endpoints.id", ondelete="CASCADE")
    )
    #: The same for all endpoints and all attempts: the header ``webhook-id``.
    event_id: Mapped[str] = mapped_column(sa.String(40))
    event_type: Mapped[str] = mapped_column(sa.String(64))
    #: What the event is about, such as a job. It is no foreign key: it may be of several tables.
    object_id: Mapped[str] = mapped_column(sa.String(64), index=True)
    created_at: Mapped[dt.datetime] = mapped_column(default=utcnow())
    status: Mapped[DeliveryStatus] = mapped_column(enum(DeliveryStatus, "status"))
    #: When it is to be sent next; while a process sends it, when that process counts as dead. Null once
    #: it was delivered or given up.
    next_attempt_at: Mapped[dt.datetime | None]
    give_up_at: Mapped[dt.datetime]
    finished_at: Mapped[dt.datetime | None]
    #: The number of times that a process took it: the fencing token of the last one.
    claims: Mapped[int] = mapped_column(default=0)
    #: The number of failed attempts since the first one, or since it was last asked for again.
    failures: Mapped[int] = mapped_column(default=0)
    #: The last attempts: ``at``, ``status_code``, ``error``, ``duration`` in seconds.
    attempts: Mapped[list[dict[str, Any]]] = mapped_column(default=list)

    __table_args__ = (
        # What is due, for each endpoint.
        partial(
            "ix_webhook_deliveries_due",
            "endpoint_id",
            "next_attempt_at",
            where="next_attempt_at IS NOT NULL",
        ),
        # The lists of an endpoint, newest first: all, and those of one status.
        sa.Index(None, "endpoint_id", "created_at", "id"),
        sa.Index("ix_webhook_deliveries_status", "endpoint_id", "status", "created_at", "id"),
    )
