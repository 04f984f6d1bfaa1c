"""The calls of ``/v1``."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from flask import Blueprint, Response, request, url_for

from jobs import pipeline
from jobs.models import Job
from jobs.store import IdempotencyError
from web.errors import RequestError
from web.services import services
from web.v1 import accept, render
from web.v1.feeds import feeds

blueprint = Blueprint("v1", __name__)

#: The most seconds `Prefer: wait=N` holds a reply.
LONGEST_WAIT = 60.0
LONGEST_PAGE = 100


@blueprint.post("/responses")
def create() -> Response:
    """Accept a question: ``202`` at once, or the finished response, or its events."""
    found = services()
    data = accept.read(request.get_data(), request.mimetype)
    key = _idempotency_key()
    digest = None if key is None else accept.digest(data)
    streams = data.get("stream") is True
    waits = not streams and data.get("background") is not True
    with ExitStack() as stack:
        try:
            # What was accepted stays accepted, whatever a new request may ask by now.
            job = found.store.earlier(key, digest)
            if streams or (waits and (job is None or not job.status.final)):
                stack.enter_context(found.waiting_room())
            if job is None:
                job = _submit(data, key, digest)
        except IdempotencyError:
            raise RequestError(
                422,
                "This Idempotency-Key was used with another request; use a new one.",
                code="idempotency_key_reused",
            ) from None
        if streams:
            return _event_stream(job.id, after=-1, place=stack.pop_all())
        if waits:
            if not job.status.final:
                job = found.wait(job.id, lambda j: j.status.final, math.inf, _client_gone())
            if job.status.final:
                return _reply(job)
    # It was asked in the background; or the server stops, and the job goes on without it.
    response = _reply(job, status=202)
    response.headers["Location"] = url_for("v1.retrieve", job_id=job.id)
    return response


def _idempotency_key() -> str | None:
    key = request.headers.get("Idempotency-Key")
    if key is not None and not 1 <= len(key) <= 255:
        raise RequestError(
            400, "An Idempotency-Key has 1 to 255 characters.", code="invalid_idempotency_key"
        )
    return key


def _submit(data: dict[str, Any], key: str | None, digest: str | None) -> Job:
    found = services()
    try:
        new = accept.new_job(accept.validate(data), found.tokens, key, digest)
    except RequestError:
        # The same request may have been accepted at the same time, just before the limits changed.
        if (job := found.store.earlier(key, digest)) is None:
            raise
        return job
    return found.submit(new)[0]


@blueprint.get("/responses")
def index() -> Response:
    """List jobs, newest first."""
    order = _choice("order", "desc", ("asc", "desc"))
    jobs, more = services().store.page(
        limit=_integer("limit", 20, 1, LONGEST_PAGE),
        after=request.args.get("after"),
        newest_first=order == "desc",
        attempts=True,
    )
    data = [render.response(job) for job in jobs]
    return _json(
        {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": more,
        }
    )


@blueprint.get("/responses/<job_id>")
def retrieve(job_id: str) -> Response:
    """Tell how a job stands: now, or with ``Prefer: wait=N`` when its status has changed."""
    found = services()
    if _choice("stream", "false", ("true", "false")) == "true":
        found.store.standing(job_id)  # or there is none
        last_seen = request.headers.get("Last-Event-ID", "")
        after = int(last_seen) if re.fullmatch(r"\d{1,9}", last_seen) else -1
        after = _integer("starting_after", after, -1, 10**9)
        with ExitStack() as stack:
            stack.enter_context(found.waiting_room())
            return _event_stream(job_id, after, place=stack.pop_all())
    job = found.store.job(job_id)
    wait = re.search(r"\bwait=(\d{1,9})\b", request.headers.get("Prefer", ""))
    if wait and not job.status.final:
        before = job.status
        seconds = min(float(wait[1]), LONGEST_WAIT)
        with found.waiting_room():
            job = found.wait(job_id, lambda j: j.status is not before, seconds, _client_gone())
    return _reply(job)


@blueprint.post("/responses/<job_id>/cancel")
def cancel(job_id: str) -> Response:
    """End a job that has not ended, and tell how it stands."""
    return _reply(services().cancel(job_id))


@blueprint.get("/models")
def models() -> Response:
    """List the one model there is."""
    return _json({"object": "list", "data": [_model()]})


@blueprint.get("/models/<name>")
def model(name: str) -> Response:
    """Describe the one model there is."""
    if name != pipeline.MODEL:
        raise RequestError(
            404,
            f"There is no model {name!r}; this server has {pipeline.MODEL!r}.",
            code="model_not_found",
            param="model",
        )
    return _json(_model())


def _model() -> dict[str, Any]:
    # HelixNet was published on 2023-11-05.
    return {"id": pipeline.MODEL, "object": "model", "created": 1699142400, "owned_by": "helixq"}


def _event_stream(job_id: str, after: int, place: ExitStack) -> Response:
    """Stream a job's events, and give the place in the waiting room back at the end."""
    found = services()
    gone = _client_gone()
    response = Response(
        feeds().stream(
            job_id,
            after,
            keepalive=found.keepalive,
            done=lambda: found.stopping() or gone(),
        ),
        mimetype="text/event-stream",
        # Proxies that buffer would hold the events back.
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )
    response.call_on_close(place.close)
    return response


def _client_gone() -> Callable[[], bool]:
    """Return what tells whether the client of this request has closed its connection."""
    gone: Callable[[], bool] = request.environ.get("waitress.client_disconnected", lambda: False)
    return gone


def _reply(job: Job, status: int = 200) -> Response:
    response = _json(render.response(job), status)
    response.headers["Cache-Control"] = "no-cache"
    if not job.status.final:
        response.headers["Retry-After"] = "1"
    if request.method in ("GET", "HEAD"):
        response.set_etag(hashlib.sha256(response.get_data()).hexdigest()[:32])
        response.make_conditional(request)
    if response.status_code == 412:
        raise RequestError(
            412, "The response is no longer what If-Match names.", code="precondition_failed"
        )
    return response


def _json(body: Any, status: int = 200) -> Response:
    text = json.dumps(body, ensure_ascii=False, separators=(",", ":"))
    return Response(text, status, mimetype="application/json")


def _integer(name: str, default: int, least: int, most: int) -> int:
    text = request.args.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"-?\d{1,10}", text) or not least <= int(text) <= most:
        raise RequestError(
            400,
            f"`{name}` should be a whole number from {least} to {most}.",
            code="invalid_value",
            param=name,
        )
    return int(text)


def _choice(name: str, default: str, choices: tuple[str, ...]) -> str:
    value = request.args.get(name, default)
    if value not in choices:
        raise RequestError(
            400,
            f"`{name}` should be one of {', '.join(choices)}.",
            code="invalid_value",
            param=name,
        )
    return value
