"""The shapes of what runs and what waits: workers, the queue and its pauses, a job's place."""

from __future__ import annotations

from typing import Any, Literal

from jobs.enums import Status
from jobs.pipeline import Role
from jobs.protocol.schemas.base import Digest, Reply, Time


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


class SystemState(Reply):
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
