"""The endpoints that erase texts of jobs, and delete jobs."""

from __future__ import annotations

from flask import Response, jsonify

from jobs.protocol.errors import InvalidRequestError
from jobs.protocol.removal import DeleteJobs, EraseJobs, EraseTexts
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
    erased = get_services().erase(job_id, _pointers(body.texts), keyed)
    return jsonify(id=job_id, erased=erased)


@blueprint.post("/jobs/erase")
def erase_texts_of_jobs() -> Response:
    """Erase texts of jobs of an owner, or with metadata, a step at a time: until `after` is null."""
    data = read_json()
    keyed = keyed_request(data)
    body = parse(EraseJobs, data)
    _check_selection(body)
    step = get_services().erase_matching(
        body.owner,
        body.metadata or {},
        _pointers(body.texts),
        after=body.after,
        dry_run=body.dry_run,
        keyed=keyed,
    )
    return jsonify(
        matched=step.matched,
        erased=[{"id": each, "erased": texts} for each, texts in step.erased.items()],
        refused=[{"id": each, "message": why} for each, why in step.refused.items()],
        after=step.after,
    )


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
    _check_selection(body)
    step = get_services().delete_matching(
        body.owner, body.metadata or {}, after=body.after, dry_run=body.dry_run, keyed=keyed
    )
    return jsonify(
        matched=len(step.ids), deleted=0 if body.dry_run else len(step.ids), after=step.after
    )


def _pointers(texts: list[str] | str) -> list[str] | None:
    return None if isinstance(texts, str) else texts


def _check_selection(body: DeleteJobs) -> None:
    if body.owner is None and not body.metadata:
        raise InvalidRequestError(
            "Say which jobs: `owner`, `metadata`, or both.",
            code="missing_required_parameter",
            param="owner",
        )
