"""What responses and chat completions share: accepting a question, waiting for its job, and streaming its events."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack

from flask import Response, request

from jobs.models import Job
from jobs.protocol.conversation import resolve
from jobs.protocol.errors import ProtocolError
from jobs.protocol.new_job import new_job
from jobs.protocol.request import CreateResponse
from jobs.use_cases import submission
from jobs.use_cases.requests import Keyed
from web.caller import get_caller
from web.services import get_services
from web.v1.feeds import get_feeds


def submit(validated: Callable[[], CreateResponse], keyed: Keyed | None) -> Job:
    """Accept a question; return its job, or the one that the same request created before.

    Args:
        validated: returns the valid request, or raises what is wrong with it.
        keyed: the HTTP request, if it has an idempotency key.

    Raises:
        ProtocolError: the request is wrong, or too large for the model.
        UserError: the job is not accepted, as `submission.submit` raises it.
    """
    services = get_services()
    try:
        valid, turns = resolve(validated(), services.database, services.owner)
        new = new_job(valid, services.tokens, turns, keyed)
    except ProtocolError:
        # The same request may have been accepted at the same time, just before the limits changed.
        if (job := submission.find_made(services.database, keyed)) is None:
            raise
        return job
    return services.submit(new)


def wait_for_end(job: Job) -> Job:
    """Wait until a job of the current request's owner has ended, unless the server shuts down; return it as it is then."""
    if job.status.final:
        return job
    services = get_services()
    return services.waiter.wait(
        services.owner, job.id, lambda j: j.status.final, math.inf, client_disconnected()
    )


def message_stream(job_id: str, after: int) -> Iterator[bytes]:
    """Yield the messages of a job's event stream, for as long as the client may and wants to read them."""
    services, disconnected, caller = get_services(), client_disconnected(), get_caller()
    return get_feeds().stream(
        caller.readable_owner,
        job_id,
        after,
        stop=lambda: services.waiter.stopping() or disconnected() or not caller.is_valid(),
    )


def stream_response(messages: Iterator[bytes], slot: ExitStack) -> Response:
    """Reply with messages as they come, and release the slot at the end."""
    reply = Response(
        messages,
        mimetype="text/event-stream",
        # Proxies that buffer would delay the events.
        headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
    )
    reply.call_on_close(slot.close)
    return reply


def client_disconnected() -> Callable[[], bool]:
    """Return a function that returns whether this request's client has closed its connection."""
    disconnected: Callable[[], bool] = request.environ.get(
        "waitress.client_disconnected", lambda: False
    )
    return disconnected
