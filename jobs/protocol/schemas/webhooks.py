"""The shapes of webhook endpoints and deliveries."""

from __future__ import annotations

from typing import Literal

from jobs.enums import DeliveryStatus
from jobs.protocol.schemas.base import AlwaysTrue, Page, Reply, Timestamp


class WebhookEndpoint(Reply):
    """A URL that is told about events."""

    id: str
    object: Literal["webhook_endpoint"]
    created_at: Timestamp
    updated_at: Timestamp
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str
    disabled_at: Timestamp | None


class NewWebhookSecret(WebhookEndpoint):
    """An endpoint whose secret is new."""

    signing_secret: str


class WebhookEndpointList(Page):
    """A page of endpoints."""

    data: list[WebhookEndpoint]


class DeletedWebhookEndpoint(Reply):
    id: str
    object: Literal["webhook_endpoint.deleted"]
    deleted: AlwaysTrue


class WebhookTest(Reply):
    """What a receiver replied to a sample."""

    object: Literal["webhook_endpoint.test"]
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: AlwaysTrue


class EventObject(Reply):
    id: str


class WebhookEvent(Reply):
    id: str
    type: str
    data: EventObject


class WebhookAttempt(Reply):
    at: str
    status_code: int | None
    error: str | None
    duration: float


class WebhookDelivery(Reply):
    """An event that is to be sent to an endpoint, or was."""

    id: str
    object: Literal["webhook_endpoint.delivery"]
    webhook_endpoint_id: str
    event: WebhookEvent
    status: DeliveryStatus
    created_at: Timestamp
    next_attempt_at: Timestamp | None
    finished_at: Timestamp | None
    attempts: list[WebhookAttempt]


class WebhookDeliveryList(Page):
    """A page of deliveries."""

    data: list[WebhookDelivery]


class WebhookEventTypeList(Reply):
    object: Literal["list"]
    data: list[str]
