"""The endpoints of ``/api/system``: what runs and what waits, pausing and resuming the queue."""

from __future__ import annotations

from flask import Response, jsonify

from jobs.models import Pause, Scope
from jobs.protocol.system import PauseQueue, pause_object, system_object
from jobs.protocol.validation import parse
from jobs.use_cases import system
from web.access import check_scope
from web.api.routes import blueprint
from web.idempotency import keyed_request
from web.request_body import check_no_parameters, read_json
from web.services import get_services


@blueprint.get("/system")
def get_system() -> Response:
    """Reply with the workers, the queue, webhooks to send and the log, for those who operate the service."""
    check_scope(Scope.AUDIT)
    database = get_services().database
    return jsonify(system_object(system.describe(database), database.engine.dialect.name))


@blueprint.post("/system/pause")
def pause_queue() -> Response:
    """Pause the queue: no stage starts until it is resumed. Those that run finish, and questions are accepted."""
    data = read_json()
    keyed = keyed_request(data)
    return _change(*get_services().pause(parse(PauseQueue, data).note, keyed))


@blueprint.post("/system/resume")
def resume_queue() -> Response:
    """Resume the queue."""
    check_no_parameters()
    return _change(*get_services().resume(keyed_request()))


def _change(last: Pause | None, changed: bool) -> Response:
    return jsonify(changed=changed, pause=None if last is None else pause_object(last))
