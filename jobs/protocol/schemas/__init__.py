"""The shapes of replies, for the description of the API: what `response`, `history` and others return.

Nothing is made from them. The tests check that replies have these shapes, and no other members. Each area of the API
has a module. The names here are those of whole replies, and those of objects whose members commands print.
"""

from jobs.protocol.schemas.base import Reply
from jobs.protocol.schemas.batches import Batch, BatchList
from jobs.protocol.schemas.chat import ChatCompletion, ChatMessageList, DeletedChatCompletion
from jobs.protocol.schemas.erasures import DeletedJob, DeletedJobs, Erased, ErasedJobs
from jobs.protocol.schemas.errors import ErrorReply, Problem
from jobs.protocol.schemas.files import DeletedFile, FileList, FileObject
from jobs.protocol.schemas.health import Alive, Readiness
from jobs.protocol.schemas.history import History, Replay
from jobs.protocol.schemas.input_items import InputItemList
from jobs.protocol.schemas.lists import ListedJob, SummaryList
from jobs.protocol.schemas.responses import (
    DeletedResponse,
    InputTokenCount,
    ResponseList,
    ResponseObject,
)
from jobs.protocol.schemas.reviews import Agreements, Review, ReviewList, ReviewQueue, ToReview
from jobs.protocol.schemas.served_models import ModelList, ServedModel
from jobs.protocol.schemas.stats import Statistics
from jobs.protocol.schemas.summary import Summary
from jobs.protocol.schemas.system import PauseChange, QueuePlace, SystemState
from jobs.protocol.schemas.webhooks import (
    DeletedWebhookEndpoint,
    NewWebhookSecret,
    WebhookDelivery,
    WebhookDeliveryList,
    WebhookEndpoint,
    WebhookEndpointList,
    WebhookEventTypeList,
    WebhookTest,
)

__all__ = [
    "Agreements",
    "Alive",
    "Batch",
    "BatchList",
    "ChatCompletion",
    "ChatMessageList",
    "DeletedChatCompletion",
    "DeletedFile",
    "DeletedJob",
    "DeletedJobs",
    "DeletedResponse",
    "DeletedWebhookEndpoint",
    "Erased",
    "ErasedJobs",
    "ErrorReply",
    "FileList",
    "FileObject",
    "History",
    "InputItemList",
    "InputTokenCount",
    "ListedJob",
    "ModelList",
    "NewWebhookSecret",
    "PauseChange",
    "Problem",
    "QueuePlace",
    "Readiness",
    "Replay",
    "Reply",
    "ResponseList",
    "ResponseObject",
    "Review",
    "ReviewList",
    "ReviewQueue",
    "ServedModel",
    "Statistics",
    "Summary",
    "SummaryList",
    "SystemState",
    "ToReview",
    "WebhookDelivery",
    "WebhookDeliveryList",
    "WebhookEndpoint",
    "WebhookEndpointList",
    "WebhookEventTypeList",
    "WebhookTest",
]
