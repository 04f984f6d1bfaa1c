"""The shapes of what was erased or deleted."""

from __future__ import annotations

from jobs.protocol.schemas.base import AlwaysTrue, Digest, JobId, Reply, Time


class Erased(Reply):
    """The texts that a request erased, as JSON pointers into the history."""

    id: JobId
    erased: list[str]


class NotErased(Reply):
    """A job whose texts cannot be erased now, and why."""

    id: JobId
    message: str


class ErasedJobs(Reply):
    """What a step did with the jobs that match, and where the next one begins."""

    matched: int
    erased: list[Erased]
    refused: list[NotErased]
    after: str | None


class DeletedJob(Reply):
    id: JobId
    deleted: AlwaysTrue


class DeletedJobs(Reply):
    """What a step of a deletion found, and where the next one begins."""

    matched: int
    deleted: int
    after: str | None


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
