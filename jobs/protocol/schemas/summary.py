"""The shape of a job's summary, which lists, histories and the queue of reviews contain."""

from __future__ import annotations

from jobs.enums import Status
from jobs.protocol.schemas.base import AlwaysTrue, Digest, JobId, Reply, Time


class ErasedText(Reply):
    """What is in the place of a text that was erased: its salted hash."""

    erased: AlwaysTrue
    hash: Digest


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


class LogPlace(Reply):
    """An entry in the transparency log, and the salt of the texts in its record, or the salts of those left."""

    index: int | None
    salt: str | None = None
    salts: dict[str, str] | None = None
