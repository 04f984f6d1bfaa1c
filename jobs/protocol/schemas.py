"""The shapes of replies, for the description of the API: what `response`, `history` and others return.

Nothing is made from them. The tests check that replies have these shapes, and no other members.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from jobs import pipeline
from jobs.enums import AttemptStatus, BatchStatus, DeliveryStatus, FilePurpose, Scope, Status
from jobs.pipeline import Role
from jobs.protocol.items import RefusalPart
from jobs.protocol.request import Context

#: Unix time in seconds.
Timestamp = Annotated[int, Field(description="Unix time in seconds.")]
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
JobId = Annotated[str, Field(pattern=r"^resp_[0-9a-f]{32}$")]
Model = Literal["helixnet"]
FinishReason = Literal["stop", "length", "cancelled", "deadline", "error"]


class Reply(BaseModel):
    """An object of a reply. It has no other members."""

    model_config = ConfigDict(extra="forbid")


class ApiError(Reply):
    """What was wrong, and what would be right."""

    message: str
    type: Literal["invalid_request_error", "rate_limit_error", "server_error"]
    code: str
    param: str | None


class ErrorReply(Reply):
    """An error of `/v1`."""

    error: ApiError


class Problem(Reply):
    """An error of `/api` (RFC 9457)."""

    title: str
    status: int
    detail: str
    code: str


class SummaryText(Reply):
    type: Literal["summary_text"]
    text: str


class ReasoningText(Reply):
    type: Literal["reasoning_text"]
    text: str


class OutputText(Reply):
    type: Literal["output_text"]
    text: str
    annotations: list[Any] = Field(max_length=0)
    logprobs: list[Any] = Field(max_length=0)


class OutputReasoning(Reply):
    """A draft or a critique."""

    type: Literal["reasoning"]
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    summary: list[SummaryText]
    content: list[ReasoningText]


class OutputMessage(Reply):
    """The answer."""

    type: Literal["message"]
    id: str
    status: Literal["in_progress", "completed", "incomplete"]
    role: Literal["assistant"]
    content: list[OutputText]


class InputTokens(Reply):
    cached_tokens: int
    cache_write_tokens: int


class InputTokenCount(Reply):
    """How long the longest prompt of a request is."""

    object: Literal["response.input_tokens"]
    input_tokens: int
    #: With a longer one, the texts of all stages would not fit the model's context.
    max_input_tokens: int


class OutputTokens(Reply):
    reasoning_tokens: int


class Usage(Reply):
    """Tokens over all finished stages."""

    input_tokens: int
    input_tokens_details: InputTokens
    output_tokens: int
    output_tokens_details: OutputTokens
    total_tokens: int


class JobError(Reply):
    code: str
    message: str


class Incomplete(Reply):
    reason: Literal["max_output_tokens"]


class Response(Reply):
    """A job as OpenAI's Response object."""

    id: JobId
    object: Literal["response"]
    created_at: Timestamp
    status: Status
    background: bool
    completed_at: Timestamp | None
    error: JobError | None
    incomplete_details: Incomplete | None
    instructions: str
    max_output_tokens: int
    metadata: dict[str, str]
    model: Model
    output: list[OutputReasoning | OutputMessage]
    previous_response_id: str | None
    store: Literal[True]
    temperature: float
    top_p: float
    tools: list[Any] = Field(max_length=0)
    tool_choice: Literal["auto", "none"]
    parallel_tool_calls: bool
    max_tool_calls: int | None
    top_logprobs: Literal[0]
    presence_penalty: float
    frequency_penalty: float
    text: dict[str, Any]
    truncation: Literal["auto", "disabled"]
    reasoning: dict[str, str | None] | None
    service_tier: Literal["auto", "default"]
    user: str | None
    safety_identifier: str | None
    prompt_cache_key: str | None
    prompt_cache_retention: str | None
    usage: Usage | None
    context: Context
    top_k: int
    seed: int
    rounds: int = Field(ge=1, le=pipeline.MAX_ROUNDS)
    priority: int = Field(ge=0, le=pipeline.MAX_PRIORITY)
    run: int
    erased_at: Timestamp | None


class _Page(Reply):
    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool


class ResponseList(_Page):
    """A page of responses."""

    data: list[Response]


class DeletedResponse(Reply):
    id: JobId
    object: Literal["response"]
    deleted: Literal[True]


class InputText(Reply):
    """Text as it was sent, with what else the part had."""

    model_config = ConfigDict(extra="allow")

    type: Literal["input_text", "output_text"]
    text: str


class InputMessage(Reply):
    type: Literal["message"]
    id: str
    status: Literal["completed"]
    role: Literal["user", "assistant", "system", "developer"]
    content: list[InputText | RefusalPart]


class OtherInputItem(Reply):
    """A reasoning item or an item reference, as it was sent."""

    model_config = ConfigDict(extra="allow")

    type: Literal["item_reference", "reasoning"]
    id: str


class InputItemList(_Page):
    """A page of what was asked."""

    data: list[InputMessage | OtherInputItem]


class ServedModel(Reply):
    id: Model
    object: Literal["model"]
    created: Timestamp
    owned_by: str


class ModelList(Reply):
    object: Literal["list"]
    data: list[ServedModel]


class ChatAnswer(Reply):
    role: Literal["assistant"]
    content: str
    reasoning_content: str
    refusal: None
    annotations: list[Any] = Field(max_length=0)


class ChatChoice(Reply):
    index: Literal[0]
    message: ChatAnswer
    logprobs: None
    finish_reason: Literal["stop", "length"]


class ChatUsage(Reply):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: InputTokens
    completion_tokens_details: OutputTokens


class ChatCompletion(Reply):
    """A job as OpenAI's chat completion."""

    id: str = Field(pattern=r"^chatcmpl-[0-9a-f]{32}$")
    object: Literal["chat.completion"]
    created: Timestamp
    model: Model
    service_tier: Literal["default"]
    system_fingerprint: None
    choices: list[ChatChoice] = Field(min_length=1, max_length=1)
    usage: ChatUsage
    metadata: dict[str, str]
    context: Context


class File(Reply):
    """The input or the output of a batch."""

    id: str = Field(pattern=r"^file-[0-9a-f]{32}$")
    object: Literal["file"]
    bytes: int
    created_at: Timestamp
    expires_at: Timestamp | None
    filename: str
    purpose: FilePurpose
    status: Literal["processed"]
    status_details: None


class FileList(_Page):
    """A page of files."""

    data: list[File]


class DeletedFile(Reply):
    id: str
    object: Literal["file"]
    deleted: Literal[True]


class LineError(Reply):
    code: str
    line: int | None
    message: str
    param: str | None


class BatchErrors(Reply):
    object: Literal["list"]
    data: list[LineError]


class RequestCounts(Reply):
    total: int
    completed: int
    failed: int


class CachedTokens(Reply):
    cached_tokens: int


class BatchUsage(Reply):
    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: OutputTokens
    total_tokens: int


class Batch(Reply):
    """Questions of a file, answered in the background."""

    id: str = Field(pattern=r"^batch_[0-9a-f]{32}$")
    object: Literal["batch"]
    endpoint: Literal["/v1/responses", "/v1/chat/completions"]
    model: Model
    errors: BatchErrors | None
    input_file_id: str
    completion_window: Literal["24h"]
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: Timestamp
    in_progress_at: Timestamp | None
    expires_at: Timestamp | None
    finalizing_at: Timestamp | None
    completed_at: Timestamp | None
    failed_at: Timestamp | None
    expired_at: Timestamp | None
    cancelling_at: Timestamp | None
    cancelled_at: Timestamp | None
    request_counts: RequestCounts
    usage: BatchUsage
    metadata: dict[str, str]


class BatchList(_Page):
    """A page of batches."""

    data: list[Batch]


class Turn(Reply):
    role: Literal["user", "assistant"]
    text: str


class Restart(Reply):
    run: int
    at: Time
    model_before: Digest
    reason: str


class Retry(Reply):
    """A retry of the job after it had failed."""

    at: Time
    finished_at: Time
    code: str
    entry: int | None


class Checkpoint(Reply):
    """A base or an adapter."""

    model_config = ConfigDict(extra="allow")

    name: str
    #: Not there if only a server has the weights.
    digest: str | None = None
    revision: str | None = None


class Worker(Reply):
    """The worker of an attempt, and what it served."""

    model_config = ConfigDict(extra="allow")

    id: str
    host: str
    pid: int
    model: Digest
    engine: str
    engine_config: dict[str, Any] = {}
    base: Checkpoint | None = None
    adapters: dict[Role, Checkpoint] = {}
    versions: dict[str, Any] = {}


class Erased(Reply):
    """The texts that a request erased, as JSON pointers into the history."""

    id: JobId
    erased: list[str]


class DeletedJob(Reply):
    id: JobId
    deleted: Literal[True]


class DeletedJobs(Reply):
    """What a step of a deletion found, and where the next one begins."""

    matched: int
    deleted: int
    after: str | None


class ErasedText(Reply):
    """What is in the place of a text that was erased: its salted hash."""

    erased: Literal[True]
    hash: Digest


class Attempt(Reply):
    """An attempt at a stage."""

    position: int
    role: Role
    round: int
    run: int
    number: int
    status: AttemptStatus
    prompt: str | ErasedText
    output: str | ErasedText | None
    temperature: float
    top_k: int
    top_p: float
    max_output_tokens: int | None
    seed: int
    prompt_tokens: int | None
    output_tokens: int | None
    finish_reason: FinishReason | None
    queued_at: Time | None
    started_at: Time
    first_token_at: Time | None
    finished_at: Time | None
    error: str | ErasedText | None
    worker: Worker


class BatchLine(Reply):
    """Which line of a batch a job answers."""

    id: str
    custom_id: str | ErasedText


class StageError(Reply):
    """Why a job failed."""

    code: str
    message: str | ErasedText | None


class Summary(Reply):
    """What a list says about a job."""

    id: JobId
    owner: str
    key: str | None
    replay_of: JobId | None
    batch: BatchLine | None
    status: Status
    question: str | ErasedText
    rounds: int
    priority: int
    metadata: ErasedText | dict[str, str]
    model: Digest | None
    run: int
    created_at: Time
    started_at: Time | None
    finished_at: Time | None
    erased_at: Time | None
    rating: int | None
    error: StageError | None


class QueuePause(Reply):
    """Since when the queue is paused, and what the operator says of it."""

    paused_at: Time
    note: str | None


class QueuePlace(Reply):
    """How a job waits.

    ``place`` is 1 for the job that starts next, and null once it does not wait, or while the queue is paused.
    """

    status: Status
    place: int | None
    queued: int
    ready_workers: int
    wait: float | None
    paused: QueuePause | None


class SnippetPart(Reply):
    text: str
    match: bool


class Snippet(Reply):
    """A piece of a text that matches a search."""

    field: Literal["question", "answer", "critique", "regeneration"]
    position: int | None
    start: int
    parts: list[SnippetPart]


class AdapterName(Reply):
    name: str
    digest: str


class WorkerName(Reply):
    id: str
    host: str


class ListedJob(Summary):
    """A job in a list, with what the list is filtered by; null until the job is indexed."""

    max_attempts: int | None
    changed: float | None
    duration: float | None
    adapters: list[AdapterName] | None
    workers: list[WorkerName] | None
    snippets: list[Snippet] | None


class SummaryList(Reply):
    """A page of jobs."""

    data: list[ListedJob]
    has_more: bool
    next: str | None


class Difference(Reply):
    """The first difference between a job and its replay."""

    position: int
    role: Role
    round: int
    field: Literal["prompt", "output", "finish_reason"]
    at: int
    original: str | None
    replay: str | None


class Change(Reply):
    """What differs between two workers."""

    field: str
    original: Any
    replay: Any


class Replay(Reply):
    """The comparison of a job with the one that it replays."""

    of: JobId
    identical: bool | None
    difference: Difference | None
    changed: list[Change]


class ReplayOfJob(Reply):
    """A job that replays the job of the history."""

    id: JobId
    created_at: Time
    status: Status
    #: Whether every text is the same; null as long as that is not known.
    identical: bool | None


class LogPlace(Reply):
    """An entry in the transparency log, and the salt of the texts in its record, or the salts of those left."""

    index: int | None
    salt: str | None = None
    salts: dict[str, str] | None = None


class Review(Reply):
    """A person's verdict on a job."""

    id: str
    number: int
    reviewer: str | ErasedText
    key: str | None
    created_at: Time
    critique: int | None
    regeneration: int | None
    corrected_answer: str | ErasedText | None
    tags: ErasedText | list[str]
    note: str | ErasedText | None
    digest: Digest | None
    log: LogPlace | None


class ReviewList(Reply):
    data: list[Review]


class Verdict(Reply):
    reviewer: str
    critique: int | None
    regeneration: int | None


class ToReview(Summary):
    """A job to review, and what others said."""

    verdicts: list[Verdict]


class ReviewQueue(Reply):
    data: list[ToReview]


class Agreement(Reply):
    """How far reviewers agree in a rating."""

    measure: Literal["cohen_kappa", "krippendorff_alpha"] | None
    value: float | None
    reviewers: list[str]
    jobs: int


class Agreements(Reply):
    critique: Agreement
    regeneration: Agreement


class Distribution(Reply):
    """Values of a measure: seconds, tokens, tokens a second, or shares. Percentiles are right within 5%."""

    count: int
    total: float
    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None


class StageFigures(Reply):
    """Finished stages of a role."""

    time: Distribution
    first_token: Distribution
    prompt_tokens: Distribution
    output_tokens: Distribution
    rate: Distribution


class RoleFigures(Reply):
    actor: StageFigures
    critic: StageFigures
    regenerator: StageFigures


class EndCounts(Reply):
    completed: int
    failed: int
    cancelled: int
    incomplete: int


class OpenCounts(Reply):
    """Jobs that have not ended; 1000 stands for more too."""

    queued: int
    in_progress: int


class RatingCounts(Reply):
    """Jobs by their last rating."""

    worse: Annotated[int, Field(alias="-1")]
    same: Annotated[int, Field(alias="0")]
    better: Annotated[int, Field(alias="1")]


class ReviewFigures(Reply):
    reviews: int
    jobs: int
    corrected: int
    critique: RatingCounts
    regeneration: RatingCounts


class Figures(Reply):
    """Figures of some ended jobs."""

    jobs: int
    statuses: EndCounts
    attempts: int
    lost_attempts: int
    queue_wait: Distribution
    duration: Distribution
    changed: Distribution
    stages: RoleFigures
    reviews: ReviewFigures


class NamedDigest(Reply):
    name: str | None
    digest: str | None


class ModelKey(Reply):
    model: Digest | None
    base: NamedDigest | None
    adapters: dict[str, NamedDigest | None]


class AdapterKey(Reply):
    role: str | None
    name: str | None
    digest: str | None


class PeriodKey(Reply):
    start: Time


class ValueKey(Reply):
    value: str | None


class FigureGroup(Figures):
    """Jobs that have something in common."""

    key: PeriodKey | ModelKey | AdapterKey | ValueKey


class OtherFigures(Figures):
    """The jobs with the values that have no group of their own."""

    values: int


class ComparedSide(Figures):
    name: str
    models: list[ModelKey]


class Estimate(Reply):
    """A share or a mean, with its 95% interval."""

    count: int
    value: float | None
    low: float | None
    high: float | None


class Difference95(Reply):
    """How much larger the second one is, with the 95% interval."""

    value: float | None
    low: float | None
    high: float | None


class ComparedMeasure(Reply):
    measure: str
    kind: Literal["share", "mean"]
    first: Estimate
    second: Estimate
    difference: Difference95 | None


class Comparison(Reply):
    """Two models or adapters."""

    first: ComparedSide
    second: ComparedSide
    measures: list[ComparedMeasure]


class Statistics(Reply):
    """Statistics of ended jobs."""

    since: Time
    until: Time
    by: str | None
    current: bool
    open: OpenCounts
    total: Figures
    groups: list[FigureGroup]
    others: OtherFigures | None
    comparison: Comparison | None


class ErasurePlace(Reply):
    index: int | None


class Erasure(Reply):
    """A request that erased texts."""

    at: Time
    by: str
    key: str | None
    texts: list[str]
    digest: Digest
    log: ErasurePlace


class Origin(Reply):
    """Where an imported job ended: the log's name, and the index of its entry there."""

    log: str
    index: int


class History(Summary):
    """Everything that is stored about a job."""

    replay: Replay | None
    replays: list[ReplayOfJob]
    system: str | ErasedText
    context: Context
    turns: ErasedText | list[Turn] | None
    input_items: ErasedText | list[dict[str, Any]] | None
    previous_response_id: str | None
    options: ErasedText | dict[str, Any]
    temperature: float
    top_k: int
    top_p: float
    max_output_tokens: int
    seed: int
    background: bool
    deadline_at: Time | None
    restarts: list[Restart]
    retries: list[Retry]
    attempts: list[Attempt]
    origin: Origin | None
    reviews: list[Review]
    erasures: list[Erasure]
    digest: Digest | None
    log: LogPlace | None


class WebhookEndpoint(Reply):
    """A URL that is told about events."""

    id: str
    object: Literal["webhook_endpoint"]
    created_at: Timestamp
    updated_at: Timestamp
    name: str
    url: str
    event_types: list[str]
    signing_secret_hint: str
    disabled_at: Timestamp | None


class NewWebhookSecret(WebhookEndpoint):
    """An endpoint whose secret is new."""

    signing_secret: str


class WebhookEndpointList(Reply):
    """A page of endpoints."""

    object: Literal["list"]
    data: list[WebhookEndpoint]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedWebhookEndpoint(Reply):
    id: str
    object: Literal["webhook_endpoint.deleted"]
    deleted: Literal[True]


class WebhookTest(Reply):
    """What a receiver replied to a sample."""

    object: Literal["webhook_endpoint.test"]
    webhook_endpoint_id: str
    event_type: str
    status_code: int
    success: Literal[True]


class EventObject(Reply):
    id: str


class WebhookEvent(Reply):
    id: str
    type: str
    data: EventObject


class WebhookAttempt(Reply):
    at: str
    status_code: int | None
    error: str | None
    duration: float


class WebhookDelivery(Reply):
    """An event that is to be sent to an endpoint, or was."""

    id: str
    object: Literal["webhook_endpoint.delivery"]
    webhook_endpoint_id: str
    event: WebhookEvent
    status: DeliveryStatus
    created_at: Timestamp
    next_attempt_at: Timestamp | None
    finished_at: Timestamp | None
    attempts: list[WebhookAttempt]


class WebhookDeliveryList(Reply):
    """A page of deliveries."""

    object: Literal["list"]
    data: list[WebhookDelivery]
    first_id: str | None
    last_id: str | None
    has_more: bool


class WebhookEventTypeList(Reply):
    object: Literal["list"]
    data: list[str]


class Alive(Reply):
    status: Literal["ok"]


class Checks(Reply):
    database: Literal["ok", "unreachable"]
    redis: Literal["ok", "unreachable"]
    worker: str


class Readiness(Reply):
    """What the server can reach."""

    status: Literal["ok", "unavailable"]
    checks: Checks
    queue: Literal["open", "paused", "unknown"]


class WorkerUsage(Reply):
    """What a worker uses, as its last heartbeat said. Null is what it does not measure. Blocks are pages or rows."""

    resident_memory_bytes: int | None
    gpu_memory_bytes: int | None
    gpu_memory_used_bytes: int | None
    num_requests_running: int | None
    num_requests_waiting: int | None
    kv_cache_blocks: int | None
    kv_cache_blocks_used: int | None


class Pause(Reply):
    """A pause of the queue. ``resumed_at`` is null while it lasts."""

    paused_at: Time
    paused_by: str
    note: str | None
    resumed_at: Time | None
    resumed_by: str | None


class PauseChange(Reply):
    """The last pause of the queue, if there ever was one, and whether the request began or ended it."""

    changed: bool
    pause: Pause | None


class SystemWorker(Reply):
    """A worker that has not stopped."""

    id: str
    host: str
    pid: int
    state: Literal["loading", "ready", "lost"]
    started_at: Time
    ready_at: Time | None
    seen_at: Time
    running: int
    slots: int | None
    usage: WorkerUsage
    context: int
    model: Digest
    base: str | None
    adapters: dict[Role, str]
    engine: str | None
    device: str | None
    versions: dict[str, Any]


class StageCounts(Reply):
    """Stages of a role, of jobs that have begun."""

    running: int
    waiting: int


class OwnerCounts(Reply):
    """The open jobs of an owner."""

    owner: str
    queued: int
    in_progress: int


class SystemQueue(Reply):
    queued: int
    paused: Pause | None
    oldest_at: Time | None
    stages: dict[Role, StageCounts]
    owners: list[OwnerCounts]


class LastAttempts(Reply):
    """The last attempts, and those of them that were lost or released."""

    last: int
    lost: int
    released: int


class PendingWebhooks(Reply):
    pending: int


class SystemLog(Reply):
    """The transparency log."""

    origin: str | None
    size: int
    unsealed: int
    checkpoint_at: Time | None


class System(Reply):
    """What runs and what waits."""

    at: Time
    version: str
    database: Literal["sqlite", "postgresql"]
    workers: list[SystemWorker]
    queue: SystemQueue
    pauses: list[Pause]
    attempts: LastAttempts
    webhooks: PendingWebhooks
    log: SystemLog


#: The scopes of API keys, as the description names them.
SCOPES = tuple(scope.value for scope in Scope)
