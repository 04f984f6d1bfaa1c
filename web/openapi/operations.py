"""What the description says of each endpoint, besides its docstring and its path.

Bodies are described by the models that validate them. Replies are described by `jobs.protocol.schemas`, and
the tests check that they are so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel

from jobs.enums import Shape
from jobs.formats.compression import Compression
from jobs.formats.writing import MEDIA_TYPES, Format
from jobs.models import DeliveryStatus, FilePurpose, Status
from jobs.pipeline import Role
from jobs.protocol import schemas, webhooks
from jobs.protocol.batches import CreateBatch
from jobs.protocol.chat_request import CreateChatCompletion
from jobs.protocol.files import MAX_EXPIRY, MIN_EXPIRY
from jobs.protocol.request import CreateResponse
from jobs.protocol.reviews import MAX_NAME, MAX_SEED, CreateReview, DeleteJobs, EraseTexts
from jobs.protocol.system import PauseQueue
from jobs.search.query import MAX_LENGTH
from web.job_filters import MAX_ATTEMPTS, MAX_DURATION
from web.query import DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE
from web.v1 import files
from web.v1.routes import MAX_KEY_LENGTH, MAX_WAIT


@dataclass(frozen=True)
class Parameter:
    """A parameter of the query, or a header of the request."""

    name: str
    schema: Mapping[str, Any]
    description: str = ""
    place: Literal["query", "header"] = "query"


@dataclass(frozen=True)
class Reply:
    """A reply with a status."""

    description: str
    shape: type[BaseModel] | None = None
    #: Its media type or types, if it is not JSON.
    media: str | Sequence[str] | None = None
    #: Whether it may also be an event stream.
    streams: bool = False
    #: Its headers, each with what it says.
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Operation:
    """What an endpoint takes and replies."""

    tag: str
    replies: Mapping[int, Reply]
    body: type[BaseModel] | None = None
    #: The schema of the form that is the body instead, if it is one.
    form: Mapping[str, Any] | None = None
    parameters: tuple[Parameter, ...] = ()
    #: The statuses of its errors, besides those of all endpoints with its kind of errors.
    errors: tuple[int, ...] = ()
    #: The shape of its errors: OpenAI's, RFC 9457's, or none where it is a page.
    error: type[BaseModel] | None = schemas.ErrorReply
    #: Whether it needs no API key.
    is_open: bool = False


#: What is wrong, by status; docs/http.md has the codes.
ERRORS = {
    400: "A parameter is wrong, or the `Host` header where the server listens on a loopback address.",
    401: "No API key was given, or it is wrong, revoked or expired.",
    403: "The API key lacks a scope, or a page of another site requested a change.",
    404: "There is no such job, model, file, batch, webhook endpoint or delivery.",
    409: "The job was cancelled, or has not ended, or is not in the transparency log yet.",
    412: "The response does not match `If-Match`.",
    413: "The body is too large.",
    415: "The body is not JSON, or its compression is unknown.",
    422: "The idempotency key was used with another body, or no stage of the job has finished.",
    424: "The receiver did not reply.",
    429: "The queue is full, or a limit of the API key is reached. `Retry-After` says when to retry.",
    500: "The server failed because of a bug, or the job failed.",
    503: "The database does not respond, or too many requests wait for jobs.",
}
#: The errors of all endpoints, and of those that have a body.
COMMON_ERRORS, BODY_ERRORS = (400, 401, 403, 429, 500, 503), (413, 415, 422)

_TEXT = {"type": "string"}
IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key",
    {"type": "string", "minLength": 1, "maxLength": MAX_KEY_LENGTH},
    "Makes it safe to repeat the request: the same key and body get the first reply again.",
    "header",
)


def page(default: int = DEFAULT_PAGE_SIZE, maximum: int = MAX_PAGE_SIZE) -> tuple[Parameter, ...]:
    """Return the parameters of lists."""
    return (
        Parameter(
            "limit", {"type": "integer", "minimum": 1, "maximum": maximum, "default": default}
        ),
        Parameter("order", {"enum": ["asc", "desc"], "default": "desc"}),
        Parameter("after", _TEXT, "The id of the last entry of the page before."),
    )


PAGE = page()
_PERIOD = (
    Parameter("since", _TEXT, "Created from then on: Unix seconds, or RFC 3339."),
    Parameter("until", _TEXT, "Created before then: Unix seconds, or RFC 3339."),
)
#: Which jobs are meant.
FILTERS = (
    Parameter("status", _TEXT, f"One or several, separated by commas: {', '.join(Status)}."),
    Parameter("owner", _TEXT, "Only jobs of this owner."),
    *_PERIOD,
    Parameter(
        "rating",
        {"enum": ["", "-1", "0", "1", "none"]},
        "The last rating of the regeneration in a review, or `none`.",
    ),
    Parameter(
        "q",
        {"type": "string", "maxLength": MAX_LENGTH},
        'Full text: words, `"phrases"`, `prefix*`, `-not`, `one OR other`.',
    ),
    Parameter("adapter", _TEXT, "Name or digest of an adapter."),
    Parameter("model", _TEXT, "Digest of the model."),
    Parameter("worker", _TEXT, "Id or host of a worker."),
    Parameter(
        "min_attempts",
        {"type": "integer", "minimum": 1, "maximum": MAX_ATTEMPTS},
        "A stage had so many attempts, or more.",
    ),
    *(
        Parameter(
            name,
            {"type": "number", "minimum": 0, "maximum": 1},
            "Share of words that the regenerator changed of the actor's draft.",
        )
        for name in ("min_changed", "max_changed")
    ),
    *(
        Parameter(
            name,
            {"type": "number", "minimum": 0, "maximum": MAX_DURATION},
            "Seconds from the job's acceptance to its end.",
        )
        for name in ("min_duration", "max_duration")
    ),
)
#: The errors of the log are plain text.
_LOG_ERRORS = {status: Reply(ERRORS[status], media="text/plain") for status in (400, 500, 503)}
_METRICS_ERRORS = {
    status: Reply(ERRORS[status], media="text/plain") for status in sorted(COMMON_ERRORS)
}
_UPLOAD = {
    "type": "object",
    "properties": {
        "file": {"type": "string", "contentMediaType": "application/octet-stream"},
        "purpose": {"enum": [FilePurpose.BATCH]},
        "expires_after[anchor]": {"enum": ["created_at"]},
        "expires_after[seconds]": {
            "type": "integer",
            "minimum": MIN_EXPIRY,
            "maximum": MAX_EXPIRY,
        },
    },
    "required": ["file", "purpose"],
    "additionalProperties": False,
}
_LOCATION = {
    "Location": "The response's address.",
    "Retry-After": "Seconds until it may have changed.",
}

OPERATIONS = {
    "v1.create": Operation(
        "Responses",
        {
            200: Reply(
                "The finished response, or its event stream.", schemas.Response, streams=True
            ),
            202: Reply("The job was accepted.", schemas.Response, headers=_LOCATION),
        },
        body=CreateResponse,
        parameters=(IDEMPOTENCY_KEY,),
        errors=(404,),
    ),
    "v1.index": Operation(
        "Responses",
        {200: Reply("A page of responses.", schemas.ResponseList)},
        parameters=(
            *PAGE,
            Parameter("status", {"enum": ["", *Status]}),
            Parameter("since", _TEXT, "Created from then on: Unix seconds, or RFC 3339."),
            Parameter("until", _TEXT, "Created before then: Unix seconds, or RFC 3339."),
        ),
        errors=(404,),
    ),
    "v1.retrieve": Operation(
        "Responses",
        {
            200: Reply(
                "The response as it is now, or its event stream.",
                schemas.Response,
                streams=True,
                headers={
                    "ETag": "Changes with the response.",
                    "Retry-After": "Until the job has ended.",
                },
            ),
            304: Reply("The response has not changed."),
        },
        parameters=(
            Parameter("stream", {"enum": ["true", "false"], "default": "false"}),
            Parameter(
                "starting_after",
                {"type": "integer", "minimum": -1, "maximum": 10**9},
                "Skips the events up to this sequence number.",
            ),
            Parameter("Last-Event-ID", _TEXT, "As `starting_after`.", "header"),
            Parameter(
                "Prefer",
                _TEXT,
                f"`wait=N`: reply when the status has changed, or after N seconds, at most {MAX_WAIT:.0f}.",
                "header",
            ),
            Parameter("If-None-Match", _TEXT, "An `ETag`.", "header"),
        ),
        errors=(404, 412),
    ),
    "v1.cancel": Operation(
        "Responses", {200: Reply("The response.", schemas.Response)}, errors=(404,)
    ),
    "v1.delete": Operation(
        "Responses", {200: Reply("It is deleted.", schemas.DeletedResponse)}, errors=(404,)
    ),
    "v1.input_tokens": Operation(
        "Responses",
        {200: Reply("The number of tokens.", schemas.InputTokenCount)},
        body=CreateResponse,
        errors=(404, 503),
    ),
    "v1.input_items": Operation(
        "Responses",
        {200: Reply("A page of items.", schemas.InputItemList)},
        parameters=PAGE,
        errors=(404,),
    ),
    "v1.create_chat_completion": Operation(
        "Chat completions",
        {200: Reply("The chat completion, or its chunks.", schemas.ChatCompletion, streams=True)},
        body=CreateChatCompletion,
        parameters=(IDEMPOTENCY_KEY,),
        errors=(404, 409),
    ),
    "v1.upload_file": Operation(
        "Files and batches",
        {200: Reply("The file is stored.", schemas.File)},
        form=_UPLOAD,
    ),
    "v1.list_files": Operation(
        "Files and batches",
        {200: Reply("A page of files.", schemas.FileList)},
        parameters=(
            *page(files.MAX_PAGE_SIZE, files.MAX_PAGE_SIZE),
            Parameter("purpose", {"enum": ["", *FilePurpose]}),
        ),
        errors=(404,),
    ),
    "v1.retrieve_file": Operation(
        "Files and batches", {200: Reply("The file.", schemas.File)}, errors=(404,)
    ),
    "v1.file_content": Operation(
        "Files and batches",
        {200: Reply("What is in it.", media="application/octet-stream")},
        errors=(404,),
    ),
    "v1.delete_file": Operation(
        "Files and batches", {200: Reply("It is deleted.", schemas.DeletedFile)}, errors=(404,)
    ),
    "v1.create_batch": Operation(
        "Files and batches",
        {200: Reply("The batch was accepted.", schemas.Batch)},
        body=CreateBatch,
        parameters=(IDEMPOTENCY_KEY,),
    ),
    "v1.list_batches": Operation(
        "Files and batches",
        {200: Reply("A page of batches.", schemas.BatchList)},
        parameters=PAGE,
        errors=(404,),
    ),
    "v1.retrieve_batch": Operation(
        "Files and batches", {200: Reply("The batch.", schemas.Batch)}, errors=(404,)
    ),
    "v1.cancel_batch": Operation(
        "Files and batches", {200: Reply("The batch.", schemas.Batch)}, errors=(404,)
    ),
    "v1.models": Operation("Models", {200: Reply("The models.", schemas.ModelList)}),
    "v1.model": Operation("Models", {200: Reply("The model.", schemas.ServedModel)}, errors=(404,)),
    **{
        f"v1.{name}": Operation(
            "Webhooks",
            {200: Reply(description, shape)},
            body=body,
            parameters=parameters,
            errors=errors,
        )
        for name, description, shape, body, parameters, errors in (
            (
                "create_webhook_endpoint",
                "The endpoint, with its secret.",
                schemas.NewWebhookSecret,
                webhooks.CreateEndpoint,
                (),
                (),
            ),
            (
                "list_webhook_endpoints",
                "A page of endpoints.",
                schemas.WebhookEndpointList,
                None,
                PAGE,
                (404,),
            ),
            (
                "retrieve_webhook_endpoint",
                "The endpoint.",
                schemas.WebhookEndpoint,
                None,
                (),
                (404,),
            ),
            (
                "update_webhook_endpoint",
                "The endpoint.",
                schemas.WebhookEndpoint,
                webhooks.UpdateEndpoint,
                (),
                (404,),
            ),
            (
                "delete_webhook_endpoint",
                "It is deleted.",
                schemas.DeletedWebhookEndpoint,
                None,
                (),
                (404,),
            ),
            (
                "rotate_webhook_secret",
                "The endpoint, with its new secret.",
                schemas.NewWebhookSecret,
                webhooks.RotateSecret,
                (),
                (404,),
            ),
            (
                "test_webhook_endpoint",
                "What the receiver replied.",
                schemas.WebhookTest,
                webhooks.SendSample,
                (),
                (404, 424),
            ),
            (
                "list_webhook_deliveries",
                "A page of deliveries.",
                schemas.WebhookDeliveryList,
                None,
                (*PAGE, Parameter("status", {"enum": ["", *DeliveryStatus]})),
                (404,),
            ),
            (
                "redeliver_webhook",
                "The delivery.",
                schemas.WebhookDelivery,
                None,
                (),
                (404,),
            ),
            (
                "list_webhook_event_types",
                "The types of events.",
                schemas.WebhookEventTypeList,
                None,
                (),
                (),
            ),
        )
    },
    "api.list_jobs": Operation(
        "Audits",
        {200: Reply("A page of jobs.", schemas.SummaryList)},
        parameters=(
            *PAGE[:1],
            Parameter(
                "order",
                {"enum": ["desc", "asc", "relevance"]},
                "`relevance` (the default with `q`), or by age: `desc` (the default without) or `asc`.",
            ),
            Parameter(
                "after", _TEXT, "What `next` of the page before has, or the id of its last entry."
            ),
            *FILTERS,
        ),
        error=schemas.Problem,
    ),
    "api.list_reviews": Operation(
        "Audits",
        {200: Reply("The reviews of the job.", schemas.ReviewList)},
        errors=(404,),
        error=schemas.Problem,
    ),
    "api.add_review": Operation(
        "Audits",
        {201: Reply("The review.", schemas.Review)},
        body=CreateReview,
        errors=(404, 409),
        error=schemas.Problem,
    ),
    "api.review_queue": Operation(
        "Audits",
        {200: Reply("The jobs to review next.", schemas.ReviewQueue)},
        parameters=(
            Parameter("kind", {"enum": ["unreviewed", "disagreements"], "default": "unreviewed"}),
            Parameter(
                "seed",
                {"type": "integer", "minimum": 0, "maximum": MAX_SEED, "default": 0},
                "Of the sample: the same seed orders the same jobs alike.",
            ),
            Parameter(
                "reviewer",
                {"type": "string", "minLength": 1, "maxLength": MAX_NAME},
                "Whose queue it is; by default the key's owner.",
            ),
            PAGE[0],
            *_PERIOD,
        ),
        error=schemas.Problem,
    ),
    "api.review_agreement": Operation(
        "Audits",
        {200: Reply("The agreement in each rating.", schemas.Agreements)},
        parameters=_PERIOD,
        error=schemas.Problem,
    ),
    "api.stats": Operation(
        "Audits",
        {200: Reply("The statistics.", schemas.Statistics)},
        parameters=(
            Parameter(
                "by",
                _TEXT,
                "What jobs are grouped by: `hour`, `day`, `model`, `adapter` or `metadata.KEY`.",
            ),
            *_PERIOD,
            Parameter("owner", _TEXT, "Only jobs of this owner."),
            Parameter("model", _TEXT, "Digest of the model."),
            Parameter("adapter", _TEXT, "Name or digest of an adapter."),
            Parameter(
                "compare",
                _TEXT,
                "Two models or adapters, separated by a comma: digests, or names of adapters.",
            ),
        ),
        error=schemas.Problem,
    ),
    "api.erase_texts": Operation(
        "Audits",
        {200: Reply("The texts that were erased.", schemas.Erased)},
        body=EraseTexts,
        errors=(404, 409),
        error=schemas.Problem,
    ),
    "api.delete_job": Operation(
        "Audits",
        {200: Reply("It is deleted.", schemas.DeletedJob)},
        errors=(404,),
        error=schemas.Problem,
    ),
    "api.delete_jobs": Operation(
        "Audits",
        {200: Reply("What this step deleted.", schemas.DeletedJobs)},
        body=DeleteJobs,
        error=schemas.Problem,
    ),
    "api.export_jobs": Operation(
        "Audits",
        {200: Reply("The file, while it is made.", media=MEDIA_TYPES)},
        parameters=(
            Parameter("format", {"enum": [*Format], "default": Format.JSONL}),
            Parameter("shape", {"enum": [*Shape], "default": Shape.HISTORY}),
            Parameter("role", {"enum": ["all", *Role]}, "Whose texts; of the shape `sft` alone."),
            Parameter("compression", {"enum": [*Compression]}, "Parquet is compressed inside."),
            Parameter("ids", _TEXT, "These jobs, separated by commas: up to 100, and no filters."),
            *FILTERS,
        ),
        errors=(404,),
        error=schemas.Problem,
    ),
    "api.replay_job": Operation(
        "Audits",
        {
            202: Reply(
                "The job was accepted.", schemas.Summary, headers={"Location": "Its history."}
            )
        },
        errors=(404, 422),
        error=schemas.Problem,
    ),
    "api.retry_job": Operation(
        "Audits",
        {202: Reply("The job goes on.", schemas.Summary, headers={"Location": "Its history."})},
        errors=(404, 409),
        error=schemas.Problem,
    ),
    "api.job": Operation(
        "Audits",
        {200: Reply("The job's history.", schemas.History)},
        errors=(404,),
        error=schemas.Problem,
    ),
    "api.get_system": Operation(
        "Audits",
        {200: Reply("What runs and what waits.", schemas.System)},
        error=schemas.Problem,
    ),
    "api.pause_queue": Operation(
        "Audits",
        {200: Reply("The queue is paused.", schemas.PauseChange)},
        body=PauseQueue,
        error=schemas.Problem,
    ),
    "api.resume_queue": Operation(
        "Audits",
        {200: Reply("The queue is not paused.", schemas.PauseChange)},
        error=schemas.Problem,
    ),
    "api.job_place": Operation(
        "Audits",
        {200: Reply("The job's place in the queue.", schemas.QueuePlace)},
        errors=(404,),
        error=schemas.Problem,
    ),
    "api.job_proof": Operation(
        "Audits",
        {200: Reply("The proof, a C2SP tlog-proof.", media="text/plain")},
        parameters=(
            Parameter(
                "origin",
                {"enum": ["true", "false"], "default": "false"},
                "The proof that it was imported with, of the first log that had it.",
            ),
            Parameter(
                "review",
                {"type": "integer", "minimum": 0, "maximum": 10**6},
                "The proof of the review with this `number`.",
            ),
            Parameter(
                "erasure",
                {"type": "integer", "minimum": 0, "maximum": 10**6},
                "The proof of this erasure, from 0 on.",
            ),
        ),
        errors=(404, 409),
        error=schemas.Problem,
    ),
    "log.log_checkpoint": Operation(
        "Audits",
        {
            200: Reply("The checkpoint, a C2SP signed note.", media="text/plain"),
            404: Reply("The log is empty.", media="text/plain"),
            **_LOG_ERRORS,
        },
        error=None,
        is_open=True,
    ),
    "log.log_tile": Operation(
        "Audits",
        {
            200: Reply(
                "32 bytes for each hash; with the level `entries`, each entry after its length in 2 bytes.",
                media="application/octet-stream",
                headers={"Cache-Control": "It never changes."},
            ),
            404: Reply("The log has no such tile.", media="text/plain"),
            **_LOG_ERRORS,
        },
        error=None,
        is_open=True,
    ),
    "health.healthz": Operation(
        "Health", {200: Reply("The process responds.", schemas.Alive)}, error=None, is_open=True
    ),
    "health.readyz": Operation(
        "Health",
        {
            200: Reply("Everything responds.", schemas.Readiness),
            503: Reply("Something does not.", schemas.Readiness),
        },
        error=None,
        is_open=True,
    ),
    "metrics.get_metrics": Operation(
        "Health",
        {
            200: Reply("The metrics.", media=("text/plain", "application/openmetrics-text")),
            **_METRICS_ERRORS,
        },
        error=None,
    ),
}
#: Blueprints that are not described: what they serve is for browsers.
PAGES = {"pages", "login", "openapi"}
