"""The events that webhooks tell of."""

from __future__ import annotations

#: What can be asked for, under OpenAI's names.
EVENT_TYPES = (
    "response.completed",
    "response.failed",
    "response.cancelled",
    "response.incomplete",
    "batch.completed",
    "batch.failed",
    "batch.expired",
    "batch.cancelled",
)
