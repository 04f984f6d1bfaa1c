"""Webhook endpoints and deliveries in OpenAI's shape, and the bodies of requests about them."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from jobs.models import WebhookDelivery, WebhookEndpoint
from jobs.protocol.base import RequestObject
from jobs.times import timestamp
from jobs.webhooks import signing
from jobs.webhooks.events import EVENT_TYPES
from jobs.webhooks.outcome import Outcome


class CreateEndpoint(RequestObject):
    """The body of ``POST /v1/webhook_endpoints``."""

    url: str
    name: str
    event_types: Annotated[list[str], Field(fail_fast=True)]


class UpdateEndpoint(RequestObject):
    """The body of ``POST /v1/webhook_endpoints/{id}``."""

    url: str | None = None
    name: str | None = None
    event_types: Annotated[list[str], Field(fail_fast=True)] | None = None


class RotateSecret(RequestObject):
    """The body of ``POST /v1/webhook_endpoints/{id}/rotate_secret``."""

    keep_old_secret_active_for_24_hours: bool = False


class SendSample(RequestObject):
    """The body of ``POST /v1/webhook_endpoints/{id}/test``."""

    event_type: str


def endpoint_object(endpoint: WebhookEndpoint, *, with_secret: bool = False) -> dict[str, Any]:
    """Return an endpoint.

    Args:
        endpoint: the endpoint.
        with_secret: whether its secret is new, and so is shown this once.
    """
    secret = {"signing_secret": endpoint.secret} if with_secret else {}
    return {
        "id": endpoint.id,
        "object": "webhook_endpoint",
        "created_at": timestamp(endpoint.created_at),
        "updated_at": timestamp(endpoint.updated_at),
        "name": endpoint.name,
        "url": endpoint.url,
        "event_types": endpoint.event_types,
        "signing_secret_hint": signing.hint(endpoint.secret),
        **secret,
        # HelixQ's own.
        "disabled_at": timestamp(endpoint.disabled_at),
    }


def delivery_object(delivery: WebhookDelivery) -> dict[str, Any]:
    """Return a delivery, which OpenAI's API does not show."""
    return {
        "id": delivery.id,
        "object": "webhook_endpoint.delivery",
        "webhook_endpoint_id": delivery.endpoint_id,
        "event": {
            "id": delivery.event_id,
            "type": delivery.event_type,
            "data": {"id": delivery.object_id},
        },
        "status": delivery.status.value,
        "created_at": timestamp(delivery.created_at),
        "next_attempt_at": timestamp(delivery.next_attempt_at),
        "finished_at": timestamp(delivery.finished_at),
        "attempts": delivery.attempts,
    }


def event_type_list() -> dict[str, Any]:
    """Return the types of events that endpoints can ask for."""
    return {"object": "list", "data": list(EVENT_TYPES)}


def deleted_object(endpoint_id: str) -> dict[str, Any]:
    """Return the reply to the deletion of an endpoint."""
    return {"id": endpoint_id, "object": "webhook_endpoint.deleted", "deleted": True}


def sample_result(endpoint_id: str, event_type: str, outcome: Outcome) -> dict[str, Any]:
    """Return what a receiver replied to a test event."""
    return {
        "object": "webhook_endpoint.test",
        "webhook_endpoint_id": endpoint_id,
        "event_type": event_type,
        "status_code": outcome.status_code,
        "success": True,
    }
