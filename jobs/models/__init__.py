"""The tables, a module for each part of the service."""

from jobs.enums import (
    ANONYMOUS,
    OPEN,
    AttemptStatus,
    BatchStatus,
    DeliveryStatus,
    FilePurpose,
    FileState,
    LogKind,
    Scope,
    Status,
    WorkerState,
)
from jobs.models.base import Base
from jobs.models.batches import Batch, BatchLine
from jobs.models.erasures import Erasure
from jobs.models.files import File, FileChunk
from jobs.models.jobs import Attempt, Job, text_id
from jobs.models.keys import ApiKey, LoginSession
from jobs.models.log import (
    LogCheckpoint,
    LogCosignature,
    LogDeletion,
    LogEntry,
    LogKey,
    LogState,
    LogTile,
    LogWitness,
    TraceReceiver,
)
from jobs.models.pauses import Pause
from jobs.models.requests import KeyedRequest
from jobs.models.reviews import Review
from jobs.models.rollups import Rollup, RollupModel
from jobs.models.search import SearchDocument
from jobs.models.webhooks import WebhookDelivery, WebhookEndpoint
from jobs.models.workers import Tokenizer, Worker

__all__ = [
    "ANONYMOUS",
    "OPEN",
    "ApiKey",
    "Attempt",
    "AttemptStatus",
    "Base",
    "Batch",
    "BatchLine",
    "BatchStatus",
    "DeliveryStatus",
    "Erasure",
    "File",
    "FileChunk",
    "FilePurpose",
    "FileState",
    "Job",
    "KeyedRequest",
    "LogCheckpoint",
    "LogCosignature",
    "LogDeletion",
    "LogEntry",
    "LogKey",
    "LogKind",
    "LogState",
    "LogTile",
    "LogWitness",
    "LoginSession",
    "Pause",
    "Review",
    "Rollup",
    "RollupModel",
    "Scope",
    "SearchDocument",
    "Status",
    "Tokenizer",
    "TraceReceiver",
    "WebhookDelivery",
    "WebhookEndpoint",
    "Worker",
    "WorkerState",
    "text_id",
]
