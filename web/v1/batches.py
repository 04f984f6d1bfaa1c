"""The endpoints of ``/v1/batches``: files of questions, answered in the background."""

from __future__ import annotations

from flask import Response

from jobs.errors import StoredFileNotFoundError
from jobs.protocol.batches import accepted_batch_object, batch_object, no_input, parse_batch
from jobs.protocol.lists import list_object
from jobs.use_cases import batches
from web import query
from web.caller import get_caller
from web.idempotency import keyed_request
from web.request_body import check_no_parameters, read_json
from web.services import get_services
from web.v1.routes import blueprint, json_response


@blueprint.post("/batches")
def create_batch() -> Response:
    """Accept a batch. Its lines are validated in the background."""
    services = get_services()
    data = read_json()
    new = parse_batch(data, chat_context=services.settings.chat_context, keyed=keyed_request(data))
    caller = get_caller()
    try:
        batch = batches.create(services.database, caller.owner, new, caller.key_id)
    except StoredFileNotFoundError as error:
        raise no_input(new.input_file_id) from error
    return json_response(accepted_batch_object(batch))


@blueprint.get("/batches")
def list_batches() -> Response:
    """List batches by age; the newest first unless the request says otherwise."""
    services = get_services()
    found, has_more = batches.list_batches(services.database, services.owner, query.page())
    return json_response(list_object(map(batch_object, found), has_more=has_more))


@blueprint.get("/batches/<batch_id>")
def retrieve_batch(batch_id: str) -> Response:
    """Reply with a batch as it is now."""
    services = get_services()
    batch = batches.get_batch(services.database, services.readable_owner, batch_id)
    return json_response(batch_object(batch))


@blueprint.post("/batches/<batch_id>/cancel")
def cancel_batch(batch_id: str) -> Response:
    """Cancel a batch that has not ended, and reply with it."""
    check_no_parameters()
    return json_response(batch_object(get_services().cancel_batch(batch_id, keyed_request())))
