"""The shape of a history: everything that is stored about a job."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from jobs.enums import AttemptStatus, Status
from jobs.pipeline import Role
from jobs.protocol.request import Context
from jobs.protocol.schemas.base import Digest, JobId, Reply, Time
from jobs.protocol.schemas.erasures import Erasure
from jobs.protocol.schemas.reviews import Review
from jobs.protocol.schemas.summary import ErasedText, LogPlace, Summary

FinishReason = Literal["stop", "stop_string", "length", "cancelled", "deadline", "error"]


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
    engine_config: dict[str, Any] = Field(default={})
    base: Checkpoint | None = None
    adapters: dict[Role, Checkpoint] = Field(default={})
    versions: dict[str, Any] = Field(default={})


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
    #: The engine's server that generated the text, if there is one and it is known.
    server: str | None
    worker: Worker


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
    #: The strings that end the text of the last stage.
    stop: ErasedText | list[str] | None
    background: bool
    #: The span that the request belongs to, as W3C's header.
    traceparent: str | None
    deadline_at: Time | None
    restarts: list[Restart]
    retries: list[Retry]
    attempts: list[Attempt]
    origin: Origin | None
    reviews: list[Review]
    erasures: list[Erasure]
    digest: Digest | None
    log: LogPlace | None
