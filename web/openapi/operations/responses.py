"""Responses, chat completions and models."""

from __future__ import annotations

from jobs.models import Status
from jobs.protocol import schemas
from jobs.protocol.chat_request import CreateChatCompletion
from jobs.protocol.request import CreateResponse
from web.openapi.operations.description import Operation, Parameter, Reply
from web.openapi.operations.parameters import OLDEST_FIRST, PAGE, PERIOD, TEXT
from web.v1.routes import MAX_EVENT, MAX_WAIT

_LOCATION = {
    "Location": "The response's address.",
    "Retry-After": "Seconds until the first poll.",
}

OPERATIONS = {
    "v1.create_response": Operation(
        "Responses",
        {
            200: Reply(
                "The finished response, or its event stream.", schemas.ResponseObject, streams=True
            ),
            202: Reply("The job was accepted.", schemas.ResponseObject, headers=_LOCATION),
        },
        body=CreateResponse,
        errors=(404,),
    ),
    "v1.list_responses": Operation(
        "Responses",
        {200: Reply("A page of responses.", schemas.ResponseList)},
        parameters=(
            *PAGE,
            Parameter("status", {"enum": [*Status]}),
            *PERIOD,
        ),
    ),
    "v1.retrieve_response": Operation(
        "Responses",
        {
            200: Reply(
                "The response as it is now, or its event stream.",
                schemas.ResponseObject,
                streams=True,
                headers={
                    "ETag": "Changes with the response.",
                    "Retry-After": "Seconds until the next poll, until the job has ended.",
                },
            ),
            304: Reply("The response has not changed."),
        },
        parameters=(
            Parameter("stream", {"enum": ["true", "false"], "default": "false"}),
            Parameter(
                "starting_after",
                {"type": "integer", "minimum": -1, "maximum": MAX_EVENT},
                "Skips the events up to this sequence number.",
            ),
            Parameter("Last-Event-ID", TEXT, "As `starting_after`.", "header"),
            Parameter(
                "Prefer",
                TEXT,
                f"`wait=N`: reply when the status has changed, or after N seconds, at most {MAX_WAIT:.0f}.",
                "header",
            ),
            Parameter("If-None-Match", TEXT, "An `ETag`.", "header"),
        ),
        errors=(404, 412),
    ),
    "v1.cancel_response": Operation(
        "Responses", {200: Reply("The response.", schemas.ResponseObject)}, errors=(404,)
    ),
    "v1.delete_response": Operation(
        "Responses", {200: Reply("It is deleted.", schemas.DeletedResponse)}, errors=(404,)
    ),
    "v1.count_input_tokens": Operation(
        "Responses",
        {200: Reply("The number of tokens.", schemas.InputTokenCount)},
        body=CreateResponse,
        errors=(404, 503),
        changes=False,
    ),
    "v1.list_input_items": Operation(
        "Responses",
        {200: Reply("A page of items.", schemas.InputItemList)},
        parameters=PAGE,
        errors=(404,),
    ),
    "v1.create_chat_completion": Operation(
        "Chat completions",
        {200: Reply("The chat completion, or its chunks.", schemas.ChatCompletion, streams=True)},
        body=CreateChatCompletion,
        errors=(404, 409),
    ),
    "v1.retrieve_chat_completion": Operation(
        "Chat completions",
        {200: Reply("The chat completion.", schemas.ChatCompletion)},
        errors=(404, 409),
    ),
    "v1.list_chat_completion_messages": Operation(
        "Chat completions",
        {200: Reply("A page of messages.", schemas.ChatMessageList)},
        parameters=OLDEST_FIRST,
        errors=(404,),
    ),
    "v1.delete_chat_completion": Operation(
        "Chat completions",
        {200: Reply("It is deleted.", schemas.DeletedChatCompletion)},
        errors=(404,),
    ),
    "v1.list_models": Operation("Models", {200: Reply("The models.", schemas.ModelList)}),
    "v1.retrieve_model": Operation(
        "Models", {200: Reply("The model.", schemas.ServedModel)}, errors=(404,)
    ),
}
