"""Webhook endpoints and deliveries."""

from __future__ import annotations

from jobs.models import DeliveryStatus
from jobs.protocol import schemas, webhooks
from web.openapi.operations.description import Operation, Parameter, Reply
from web.openapi.operations.parameters import PAGE

OPERATIONS = {
    f"v1.{name}": Operation(
        "Webhooks",
        {200: Reply(description, shape)},
        body=body,
        parameters=parameters,
        errors=errors,
    )
    for name, description, shape, body, parameters, errors in (
        (
            "create_webhook_endpoint",
            "The endpoint, with its secret.",
            schemas.NewWebhookSecret,
            webhooks.CreateEndpoint,
            (),
            (),
        ),
        (
            "list_webhook_endpoints",
            "A page of endpoints.",
            schemas.WebhookEndpointList,
            None,
            PAGE,
            (),
        ),
        (
            "retrieve_webhook_endpoint",
            "The endpoint.",
            schemas.WebhookEndpoint,
            None,
            (),
            (404,),
        ),
        (
            "update_webhook_endpoint",
            "The endpoint.",
            schemas.WebhookEndpoint,
            webhooks.UpdateEndpoint,
            (),
            (404,),
        ),
        (
            "delete_webhook_endpoint",
            "It is deleted.",
            schemas.DeletedWebhookEndpoint,
            None,
            (),
            (404,),
        ),
        (
            "rotate_webhook_secret",
            "The endpoint, with its new secret.",
            schemas.NewWebhookSecret,
            webhooks.RotateSecret,
            (),
            (404,),
        ),
        (
            "test_webhook_endpoint",
            "What the receiver replied.",
            schemas.WebhookTest,
            webhooks.SendSample,
            (),
            (404, 424),
        ),
        (
            "list_webhook_deliveries",
            "A page of deliveries.",
            schemas.WebhookDeliveryList,
            None,
            (*PAGE, Parameter("status", {"enum": [*DeliveryStatus]})),
            (404,),
        ),
        (
            "redeliver_webhook",
            "The delivery.",
            schemas.WebhookDelivery,
            None,
            (),
            (404,),
        ),
        (
            "list_webhook_event_types",
            "The types of events.",
            schemas.WebhookEventTypeList,
            None,
            (),
            (),
        ),
    )
}
