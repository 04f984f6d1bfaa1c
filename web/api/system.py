"""The endpoint of ``/api/system``: what runs and what waits."""

from __future__ import annotations

from flask import Response, jsonify

from jobs.models import Scope
from jobs.protocol.system import system_object
from jobs.use_cases import system
from web.access import check_scope
from web.api.routes import blueprint
from web.services import get_services


@blueprint.get("/system")
def get_system() -> Response:
    """Reply with the workers, the queue, webhooks to send and the log, for those who operate the service."""
    check_scope(Scope.AUDIT)
    database = get_services().database
    return jsonify(system_object(system.describe(database), database.engine.dialect.name))
