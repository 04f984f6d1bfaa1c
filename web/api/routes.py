"""The endpoints of ``/api``."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify

from jobs.protocol.history import history
from jobs.use_cases import queries
from web.services import get_services

blueprint = Blueprint("api", __name__)


@blueprint.get("/jobs/<job_id>")
def job(job_id: str) -> Response:
    """Reply with everything that is stored about a job: every attempt at every stage."""
    services = get_services()
    stored = queries.get_job(
        services.database, services.readable_owner, job_id, with_input_items=True
    )
    return jsonify(history(stored))
