"""The endpoints that erase texts of jobs, and delete jobs."""

from __future__ import annotations

from flask import Response, jsonify

from jobs.protocol.errors import InvalidRequestError
from jobs.protocol.removal import DeleteJobs, EraseTexts
from jobs.protocol.validation import parse
from web.api.routes import blueprint
from web.idempotency import keyed_request
from web.request_body import read_json
from web.services import get_services


@blueprint.post("/jobs/<job_id>/erase")
def erase_texts(job_id: str) -> Response:
    """Erase texts of a job that has ended, with their copies in the job. The record still verifies."""
    data = read_json()
    keyed = keyed_request(data)
    body = parse(EraseTexts, data)
    texts = None if body.texts == "all" else list(body.texts)
    erased = get_services().erase(job_id, texts, keyed)
    return jsonify(id=job_id, erased=erased)


@blueprint.delete("/jobs/<job:job_id>")
def delete_job(job_id: str) -> Response:
    """Delete a job with its history, and stop it if it has not ended."""
    get_services().delete(job_id)
    return jsonify(id=job_id, deleted=True)


@blueprint.post("/jobs/delete")
def delete_jobs() -> Response:
    """Delete jobs of an owner, or with metadata, a step at a time: until `after` is null."""
    data = read_json()
    keyed = keyed_request(data)
    body = parse(DeleteJobs, data)
    if body.owner is None and not body.metadata:
        raise InvalidRequestError(
            "Say which jobs: `owner`, `metadata`, or both.",
            code="missing_required_parameter",
            param="owner",
        )
    step = get_services().delete_matching(
        body.owner, body.metadata or {}, after=body.after, dry_run=body.dry_run, keyed=keyed
    )
    return jsonify(
        matched=len(step.ids), deleted=0 if body.dry_run else len(step.ids), after=step.after
    )
