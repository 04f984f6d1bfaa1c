"""The endpoints of ``/v1/responses`` and ``/v1/models``."""

from __future__ import annotations

import re
from contextlib import ExitStack
from typing import Any

from flask import Blueprint, Response, request, url_for

from jobs.models import Job, Status
from jobs.protocol import served_models
from jobs.protocol.conversation import resolve
from jobs.protocol.input_items import input_item_list
from jobs.protocol.limits import measure
from jobs.protocol.lists import list_object
from jobs.protocol.response import response
from jobs.protocol.validation import validate
from jobs.use_cases import queries, submission
from web import query
from web.errors import HTTPError
from web.idempotency import keyed_request
from web.request_body import check_no_parameters, read_json
from web.services import get_services
from web.v1.asking import (
    client_disconnected,
    message_stream,
    stream_response,
    submit,
    wait_for_end,
)
from web.v1.replies import MIN_POLL_INTERVAL, etag_of, get_replies, to_json

blueprint = Blueprint("v1", __name__)

#: The maximum number of seconds for which `Prefer: wait=N` delays a reply.
MAX_WAIT = 60.0
#: The largest sequence number after which a stream can begin.
MAX_EVENT = 10**9
#: `wait=N` among the preferences of RFC 7240, and not among the parameters of another one.
_WAIT = re.compile(r'(?:^|,)\s*wait\s*=\s*("?)(\d{1,9})\1\s*(?:[;,]|$)', re.IGNORECASE)


@blueprint.post("/responses")
def create_response() -> Response:
    """Accept a question: reply with ``202`` at once, the finished response, or the event stream."""
    services = get_services()
    data = read_json()
    keyed = keyed_request(data)
    streams = data.get("stream") is True
    waits = not streams and data.get("background") is not True
    with ExitStack() as stack:
        # A job that was accepted stays accepted, even if a new request like it would be refused now.
        job = submission.find_made(services.database, keyed)
        if streams or (waits and (job is None or not job.status.final)):
            stack.enter_context(services.waiter.slot())
        if job is None:
            job = submit(lambda: validate(data), keyed)
        if streams:
            return stream_response(message_stream(job.id, after=-1), slot=stack.pop_all())
        if waits:
            job = wait_for_end(job)
            if job.status.final:
                return _reply(job)
    # It was asked in the background, or the server is shutting down and the job continues without it.
    return _accepted(job)


@blueprint.get("/responses")
def list_responses() -> Response:
    """List jobs, newest first."""
    services = get_services()
    page = query.page("status", "since", "until")
    since, until = query.times()
    jobs, has_more = queries.list_jobs(
        services.database,
        services.owner,
        page,
        status=query.choice("status", None, tuple(Status)),
        since=since,
        until=until,
        with_attempts=True,
    )
    return json_response(list_object(map(response, jobs), has_more=has_more))


@blueprint.get("/responses/<response:job_id>")
def retrieve_response(job_id: str) -> Response:
    """Reply with a job as it is now, or with ``Prefer: wait=N`` when its status has changed."""
    query.check_names("parameter", ("starting_after", "stream"), ignored=query.NEUTRAL)
    services = get_services()
    last_event_id = request.headers.get("Last-Event-ID", "")
    after = int(last_event_id) if re.fullmatch(r"\d{1,9}", last_event_id) else -1
    after = query.integer("starting_after", after, -1, MAX_EVENT)
    if query.flag("stream"):
        # It raises an error if there is no such job.
        queries.get_version(services.database, services.readable_owner, job_id)
        with ExitStack() as stack:
            stack.enter_context(services.waiter.slot())
            return stream_response(message_stream(job_id, after), slot=stack.pop_all())
    kept, now = get_replies().get(services.readable_owner, job_id)
    before = kept.version.status
    wait = _WAIT.search(request.headers.get("Prefer", ""))
    if wait and not before.final:
        timeout = min(float(wait[2]), MAX_WAIT)
        with services.waiter.slot():
            job = services.waiter.wait(
                services.readable_owner,
                job_id,
                lambda j: j.status is not before,
                timeout,
                client_disconnected(),
            )
        return _reply(job)
    reply = Response(kept.body, mimetype="application/json")
    return _completed(reply, poll_interval=kept.poll_interval(now), etag=kept.etag)


@blueprint.post("/responses/<job_id>/cancel")
def cancel_response(job_id: str) -> Response:
    """Cancel a job that has not ended, and reply with it."""
    check_no_parameters()
    return _reply(get_services().cancel(job_id, keyed_request()))


@blueprint.delete("/responses/<response:job_id>")
def delete_response(job_id: str) -> Response:
    """Delete a job with its history, and stop it if it has not ended."""
    get_services().delete(job_id)
    return json_response({"id": job_id, "object": "response", "deleted": True})


@blueprint.post("/responses/input_tokens")
def count_input_tokens() -> Response:
    """Count the tokens of a request without asking it."""
    services = get_services()
    valid, turns = resolve(validate(read_json()), services.database, services.owner)
    size = measure(valid, turns or [], services.tokens)
    if size is None:
        raise HTTPError(
            503,
            "No worker has ever started, so the model is not known, and neither are its tokens.",
            code="model_not_loaded",
        )
    counted = {"input_tokens": size.tokens, "max_input_tokens": size.max_tokens}
    return json_response({"object": "response.input_tokens", **counted})


@blueprint.get("/responses/<job_id>/input_items")
def list_input_items(job_id: str) -> Response:
    """List what was asked: the items of the request's input."""
    page = query.page()
    job = get_services().get_job(job_id, with_history=True)
    return json_response(input_item_list(job, page))


@blueprint.get("/models")
def list_models() -> Response:
    """List the models."""
    return json_response(served_models.model_list())


@blueprint.get("/models/<name>")
def retrieve_model(name: str) -> Response:
    """Describe a model."""
    return json_response(served_models.model(name))


def _accepted(job: Job) -> Response:
    """Reply that a job is accepted: with the response as it was then, whenever the same request is repeated."""
    body = to_json(response(job, as_of=Status.QUEUED, run=1))
    reply = Response(body, 202, mimetype="application/json")
    reply.headers["Location"] = url_for("v1.retrieve_response", job_id=job.id)
    return _completed(reply, poll_interval=MIN_POLL_INTERVAL, etag=etag_of(body))


def _reply(job: Job) -> Response:
    body = to_json(response(job))
    reply = Response(body, mimetype="application/json")
    interval = None if job.status.final else MIN_POLL_INTERVAL
    return _completed(reply, poll_interval=interval, etag=etag_of(body))


def _completed(reply: Response, *, poll_interval: int | None, etag: str) -> Response:
    """Complete a reply with a response: its headers, and whether the client has it already.

    Args:
        reply: has the response.
        poll_interval: seconds after which to poll; None for a job that has ended.
        etag: of the response.
    """
    reply.headers["Cache-Control"] = "no-cache"
    if poll_interval is not None:
        reply.headers["Retry-After"] = str(poll_interval)
    if request.method in ("GET", "HEAD"):
        reply.set_etag(etag)
        reply.make_conditional(request)
    if reply.status_code == 412:
        raise HTTPError(
            412, "The response has changed: `If-Match` does not match.", code="precondition_failed"
        )
    return reply


def json_response(data: Any) -> Response:
    """Return a reply with a JSON value, without white space and sorting."""
    return Response(to_json(data), mimetype="application/json")
