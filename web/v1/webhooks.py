"""The endpoints of webhooks: OpenAI's ``/webhook_endpoints``, and deliveries."""

from __future__ import annotations

from flask import Response, request

from jobs import webhook_delivery
from jobs.models import DeliveryStatus
from jobs.protocol import webhooks as protocol
from jobs.protocol.errors import invalid_value
from jobs.protocol.lists import list_object
from jobs.protocol.validation import parse
from jobs.use_cases import deliveries, webhooks
from jobs.webhooks.events import EVENT_TYPES
from web import query
from web.caller import get_caller
from web.errors import HTTPError
from web.idempotency import keyed_request
from web.request_body import check_no_parameters, read_json
from web.services import get_services
from web.v1.routes import blueprint, json_response


@blueprint.post("/webhook_endpoints")
def create_webhook_endpoint() -> Response:
    """Register an endpoint of the caller's owner. The reply has its secret, this once."""
    services = get_services()
    data = read_json()
    keyed = keyed_request(data)
    body = parse(protocol.CreateEndpoint, data)
    endpoint = webhooks.create(
        services.database,
        services.owner,
        **body.model_dump(),
        allowed=services.settings.webhook_allowed_networks,
        keyed=keyed,
    )
    return json_response(protocol.endpoint_object(endpoint, with_secret=True))


@blueprint.get("/webhook_endpoints")
def list_webhook_endpoints() -> Response:
    """List the endpoints of the caller's owner, the newest first."""
    services = get_services()
    endpoints, has_more = webhooks.list_endpoints(services.database, services.owner, query.page())
    return json_response(list_object(map(protocol.endpoint_object, endpoints), has_more=has_more))


@blueprint.get("/webhook_endpoints/<endpoint_id>")
def retrieve_webhook_endpoint(endpoint_id: str) -> Response:
    """Describe an endpoint, without its secret."""
    endpoint = webhooks.get(get_services().database, get_caller().changeable_owner, endpoint_id)
    return json_response(protocol.endpoint_object(endpoint))


@blueprint.post("/webhook_endpoints/<endpoint_id>")
def update_webhook_endpoint(endpoint_id: str) -> Response:
    """Change an endpoint, and enable it if it is disabled."""
    services = get_services()
    data = read_json()
    keyed = keyed_request(data)
    body = parse(protocol.UpdateEndpoint, data)
    endpoint = webhooks.update(
        services.database,
        get_caller().changeable_owner,
        endpoint_id,
        allowed=services.settings.webhook_allowed_networks,
        keyed=keyed,
        **body.model_dump(),
    )
    return json_response(protocol.endpoint_object(endpoint))


@blueprint.delete("/webhook_endpoints/<endpoint_id>")
def delete_webhook_endpoint(endpoint_id: str) -> Response:
    """Delete an endpoint with its deliveries."""
    webhooks.delete(get_services().database, get_caller().changeable_owner, endpoint_id)
    return json_response(protocol.deleted_object(endpoint_id))


@blueprint.post("/webhook_endpoints/<endpoint_id>/rotate_secret")
def rotate_webhook_secret(endpoint_id: str) -> Response:
    """Give an endpoint a new secret. The reply has it, this once."""
    data = read_json() if request.get_data() else {}
    keyed = keyed_request(data)
    body = parse(protocol.RotateSecret, data)
    endpoint = webhooks.rotate_secret(
        get_services().database,
        get_caller().changeable_owner,
        endpoint_id,
        keep_previous=body.keep_old_secret_active_for_24_hours,
        keyed=keyed,
    )
    return json_response(protocol.endpoint_object(endpoint, with_secret=True))


@blueprint.post("/webhook_endpoints/<endpoint_id>/test")
def test_webhook_endpoint(endpoint_id: str) -> Response:
    """Send a test event to an endpoint, and reply with what the receiver replied."""
    services = get_services()
    data = read_json()
    keyed = keyed_request(data)
    event_type = parse(protocol.SendSample, data).event_type
    if event_type not in EVENT_TYPES:
        raise invalid_value("event_type", f"`event_type` must be one of: {', '.join(EVENT_TYPES)}.")
    with services.waiter.slot():  # The receiver may take long.
        outcome = webhook_delivery.send_sample(
            services.database,
            get_caller().changeable_owner,
            endpoint_id,
            event_type,
            services.settings.webhook_allowed_networks,
            keyed,
        )
    if outcome.status_code is None:
        raise HTTPError(424, f"The receiver did not reply: {outcome.error}.", code="no_reply")
    return json_response(protocol.sample_result(endpoint_id, event_type, outcome))


@blueprint.get("/webhook_endpoints/<endpoint_id>/deliveries")
def list_webhook_deliveries(endpoint_id: str) -> Response:
    """List the deliveries to an endpoint, the newest first."""
    found, has_more = deliveries.list_deliveries(
        get_services().database,
        get_caller().changeable_owner,
        endpoint_id,
        query.page("status"),
        query.choice("status", None, tuple(DeliveryStatus)),
    )
    return json_response(list_object(map(protocol.delivery_object, found), has_more=has_more))


@blueprint.post("/webhook_deliveries/<delivery_id>/redeliver")
def redeliver_webhook(delivery_id: str) -> Response:
    """Send an event again."""
    check_no_parameters()
    delivery = deliveries.redeliver(
        get_services().database, get_caller().changeable_owner, delivery_id, keyed_request()
    )
    return json_response(protocol.delivery_object(delivery))


@blueprint.get("/webhook_event_types")
def list_webhook_event_types() -> Response:
    """List the types of events that endpoints can ask for."""
    return json_response(protocol.event_type_list())
