"""The endpoints of ``/api``."""

from __future__ import annotations

from flask import Blueprint, Response, jsonify, request, url_for

from jobs.errors import JobNotFoundError, NotSealedError
from jobs.models import Job, Status
from jobs.protocol.errors import InvalidRequestError
from jobs.protocol.history import history, summary
from jobs.protocol.replay import report
from jobs.use_cases import proving, queries
from jobs.use_cases.replaying import replay_of
from web import query
from web.errors import HTTPError
from web.services import get_services

blueprint = Blueprint("api", __name__)

#: The query parameters of the list of jobs.
_LIST_PARAMETERS = {"status", "owner", "since", "until", "limit", "order", "after"}


@blueprint.get("/jobs")
def list_jobs() -> Response:
    """List the jobs that the caller may read, newest first."""
    services = get_services()
    if unknown := sorted(request.args.keys() - _LIST_PARAMETERS):
        raise InvalidRequestError(
            f"There is no filter `{unknown[0]}`; there are {', '.join(sorted(_LIST_PARAMETERS))}.",
            code="unknown_parameter",
            param=unknown[0],
        )
    limit, order, after = query.page()
    status = query.choice("status", "", ("", *Status))
    jobs, has_more = queries.list_jobs(
        services.database,
        services.readable_owner,
        of=request.args.get("owner"),
        limit=limit,
        after=after,
        newest_first=order == "desc",
        status=Status(status) if status else None,
        since=query.time("since"),
        until=query.time("until"),
    )
    following = None
    if has_more:
        parameters = request.args.to_dict() | {"after": jobs[-1].id}
        following = url_for(".list_jobs", **parameters)  # type: ignore[arg-type]  # names of parameters
    return jsonify(data=[summary(job) for job in jobs], has_more=has_more, next=following)


@blueprint.get("/jobs/<job_id>")
def job(job_id: str) -> Response:
    """Reply with everything that is stored about a job: every attempt at every stage."""
    services = get_services()
    stored = _get(job_id)
    replay = None
    if stored.replay_of is not None:
        try:
            original = queries.get_job(services.database, services.readable_owner, stored.replay_of)
        except JobNotFoundError:
            original = None
        replay = report(original, stored)
    return jsonify({**history(stored), "replay": replay})


@blueprint.get("/jobs/<job_id>/proof")
def job_proof(job_id: str) -> Response:
    """Reply with the proof that a job's entry is in the log: a tlog-proof file."""
    services = get_services()
    try:
        found = proving.prove(services.database, services.readable_owner, job_id)
    except NotSealedError as error:
        raise HTTPError(409, str(error), code="not_sealed") from error
    response = Response(found.text, content_type="text/plain; charset=utf-8")
    response.headers["Content-Disposition"] = f'attachment; filename="{job_id}.tlog-proof"'
    response.cache_control.no_cache = True
    return response


@blueprint.post("/jobs/<job_id>/replay")
def replay_job(job_id: str) -> Response:
    """Submit a job again as a new job of the caller, with the same parameters and the same seed."""
    job = get_services().submit(replay_of(_get(job_id)))
    reply = jsonify(summary(job))
    reply.status_code = 202
    reply.location = url_for(".job", job_id=job.id)
    return reply


@blueprint.post("/jobs/<job_id>/retry")
def retry_job(job_id: str) -> Response:
    """Let a failed job go on from its first unfinished stage."""
    reply = jsonify(summary(get_services().retry(job_id)))
    reply.status_code = 202
    reply.location = url_for(".job", job_id=job_id)
    return reply


def _get(job_id: str) -> Job:
    services = get_services()
    return queries.get_job(
        services.database, services.readable_owner, job_id, with_input_items=True
    )
