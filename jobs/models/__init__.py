"""The tables, a module for each part of the service."""

from jobs.models.base import Base
from jobs.models.batches import Batch, BatchLine, BatchStatus
from jobs.models.erasures import Erasure
from jobs.models.files import File, FileChunk, FilePurpose, FileState
from jobs.models.jobs import ANONYMOUS, OPEN, Attempt, AttemptStatus, Job, Status
from jobs.models.keys import ApiKey, LoginSession, Scope
from jobs.models.log import (
    LogCheckpoint,
    LogCosignature,
    LogDeletion,
    LogEntry,
    LogKey,
    LogKind,
    LogState,
    LogTile,
    LogWitness,
    TraceReceiver,
)
from jobs.models.pauses import Pause
from jobs.models.reviews import Review
from jobs.models.rollups import Rollup, RollupModel
from jobs.models.search import SearchDocument
from jobs.models.webhooks import DeliveryStatus, WebhookDelivery, WebhookEndpoint
from jobs.models.workers import Tokenizer, Worker, WorkerState

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
]
