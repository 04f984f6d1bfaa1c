"""The endpoints ``/v1/chat/completions``: the same jobs as ``/v1/responses``, in OpenAI's older shape."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack

from flask import Response

from jobs.errors import NotEndedError
from jobs.models import Job
from jobs.protocol.chat_completion import (
    Chunks,
    chat_completion,
    completion_id,
    message_list,
    to_json,
)
from jobs.protocol.chat_request import CreateChatCompletion, in_chat_terms
from jobs.protocol.errors import ErrorKind, InvalidRequestError, ProtocolError, UnavailableError
from jobs.protocol.validation import validate_chat, validate_response
from jobs.use_cases import submission
from web import query
from web.errors import error_response
from web.idempotency import keyed_request
from web.request_body import read_json
from web.services import get_services
from web.v1 import sse
from web.v1.asking import message_stream, stream_response, submit, wait_for_end
from web.v1.routes import blueprint, json_response


@blueprint.post("/chat/completions")
def create_chat_completion() -> Response:
    """Answer a question: reply with the chat completion, or with its chunks."""
    services = get_services()
    data = read_json()
    keyed = keyed_request(data)
    with ExitStack() as stack:
        job = submission.find_made(services.database, keyed)
        stack.enter_context(services.waiter.slot())
        request = validate_chat(data)
        if job is None:
            context = services.settings.chat_context
            try:
                job = submit(
                    lambda: validate_response(request.to_response(context), param="messages"),
                    keyed,
                )
            except InvalidRequestError as error:
                raise in_chat_terms(error) from error
        if request.stream:
            return stream_response(
                _chunks(message_stream(job.id, after=-1), request), slot=stack.pop_all()
            )
        job = wait_for_end(job)
        if not job.status.final:
            raise UnavailableError(
                f"The server is shutting down. The job continues: retrieve it as {job.id}.",
                code="unavailable",
            )
        return _completion(job)


@blueprint.get("/chat/completions/<completion:job_id>")
def retrieve_chat_completion(job_id: str) -> Response:
    """Reply with the chat completion of a job that has ended."""
    job = get_services().get_job(job_id)
    if not job.status.final:
        raise NotEndedError(job.id)
    return _completion(job)


@blueprint.get("/chat/completions/<completion:job_id>/messages")
def list_chat_completion_messages(job_id: str) -> Response:
    """List the messages that were asked."""
    page = query.page(order="asc")
    job = get_services().get_job(job_id, with_history=True)
    return json_response(message_list(job, page))


@blueprint.delete("/chat/completions/<completion:job_id>")
def delete_chat_completion(job_id: str) -> Response:
    """Delete a job with its history, and stop it if it has not ended."""
    get_services().delete(job_id)
    return json_response(
        {"id": completion_id(job_id), "object": "chat.completion.deleted", "deleted": True}
    )


def _completion(job: Job) -> Response:
    """Reply with the chat completion of a job that has ended, or with why there is none."""
    try:
        return json_response(chat_completion(job))
    except ProtocolError as error:
        reply = error_response(error)
        if error.kind is ErrorKind.INTERNAL:
            # OpenAI's clients would ask again, and the job has failed.
            reply.headers["x-should-retry"] = "false"
        return reply


def _chunks(events: Iterator[bytes], request: CreateChatCompletion) -> Iterator[bytes]:
    """Yield the chunks of a chat completion, as messages of a stream.

    Args:
        events: the messages of the response's event stream.
        request: says what the chunks should have.
    """
    chunks = Chunks(include_usage=request.includes_usage)
    for messages in events:
        if messages == sse.KEEPALIVE:
            yield messages
            continue
        text = b"".join(
            sse.data_message(to_json(chunk))
            for event in sse.events_of(messages)
            for chunk in chunks.of(json.loads(event))
        )
        if text:
            yield text
        if chunks.failed:
            return
    if chunks.finished:
        yield sse.data_message("[DONE]")
