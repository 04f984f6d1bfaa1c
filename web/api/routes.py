"""The endpoints of ``/api``."""

from __future__ import annotations

from dataclasses import replace

from flask import Blueprint, Response, jsonify, request, url_for

from jobs.protocol.errors import invalid_value
from jobs.protocol.history import accepted, history, summary
from jobs.protocol.history import page as histories
from jobs.protocol.replay import replays, report
from jobs.times import rfc3339
from jobs.use_cases import clock, proving, queries, standing, submission
from jobs.use_cases.proving import Part
from jobs.use_cases.replaying import replay_of
from web import job_filters, query
from web.idempotency import keyed_request
from web.request_body import check_no_parameters
from web.services import get_services

blueprint = Blueprint("api", __name__)

#: Of reviews and erasures of a job, in requests.
MAX_NUMBER = 10**6


@blueprint.get("/jobs")
def list_jobs() -> Response:
    """List the jobs that the caller may read: the newest first, or those that match a query best."""
    requested = job_filters.list_request()
    page = job_filters.find(requested)
    following = None
    if page.next is not None:
        parameters = request.args.to_dict() | {"after": page.next}
        following = url_for(".list_jobs", **parameters)  # type: ignore[arg-type]  # names of parameters
    return jsonify(
        data=histories(page.jobs, requested.filters.query),
        has_more=following is not None,
        next=following,
    )


@blueprint.get("/jobs/<job:job_id>")
def retrieve_job(job_id: str) -> Response:
    """Reply with everything that is stored about a job: every attempt at every stage."""
    services = get_services()
    stored = services.get_job(job_id, with_history=True)
    replay = None
    if stored.replay_of is not None:
        original = queries.find_original(services.database, services.readable_owner, stored)
        replay = report(original, stored)
    found = queries.list_replays(services.database, services.readable_owner, job_id)
    return jsonify({**history(stored), "replay": replay, "replays": replays(stored, found)})


@blueprint.get("/jobs/<job_id>/place")
def retrieve_job_place(job_id: str) -> Response:
    """Reply with a job's place in the queue, and how many workers could take it."""
    services = get_services()
    job = services.get_job(job_id)
    found = standing.find_standing(services.database, job, clock.now(services.database))
    return jsonify(
        status=job.status,
        place=found.place,
        queued=found.queued,
        ready_workers=found.ready,
        wait=None if found.wait is None else round(found.wait.total_seconds(), 1),
        paused=found.pause
        and {"paused_at": rfc3339(found.pause.paused_at), "note": found.pause.note},
    )


@blueprint.get("/jobs/<job_id>/proof")
def retrieve_job_proof(job_id: str) -> Response:
    """Reply with the proof that an entry of a job is in the log: a tlog-proof file."""
    query.check_names("parameter", ("origin", *Part))
    services = get_services()
    reader = services.database, services.readable_owner, job_id
    of_origin = query.flag("origin")
    parts = [part for part in Part if query.given(part)]
    number = query.integer(parts[0], 0, 0, MAX_NUMBER) if parts else 0
    if len(parts) > 1:
        raise invalid_value(parts[0], "Give one of `review` and `erasure`.")
    prove = proving.origin_proof if of_origin else proving.prove
    found = prove(*reader, parts[0] if parts else None, number)
    response = Response(found.text, content_type="text/plain; charset=utf-8")
    name = "-".join([job_id, *(f"{part}-{number}" for part in parts)])
    response.headers["Content-Disposition"] = f'attachment; filename="{name}.tlog-proof"'
    response.cache_control.no_cache = True
    return response


@blueprint.post("/jobs/<job_id>/replay")
def replay_job(job_id: str) -> Response:
    """Submit a job again as a new job of the caller, with the same parameters and the same seed."""
    check_no_parameters()
    services, keyed = get_services(), keyed_request()
    # A replay that was accepted stays accepted, even if texts of the job were erased meanwhile.
    job = submission.find_made(services.database, keyed)
    if job is None:
        replayed = services.get_job(job_id, with_history=True)
        job = services.submit(replace(replay_of(replayed), keyed=keyed))
    reply = jsonify(accepted(job))
    reply.status_code = 202
    reply.location = url_for(".retrieve_job", job_id=job.id)
    return reply


@blueprint.post("/jobs/<job_id>/retry")
def retry_job(job_id: str) -> Response:
    """Continue a failed job from its first unfinished stage."""
    check_no_parameters()
    reply = jsonify(summary(get_services().retry(job_id, keyed_request())))
    reply.status_code = 202
    reply.location = url_for(".retrieve_job", job_id=job_id)
    return reply
