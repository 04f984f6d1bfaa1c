"""The types of webhook events."""

from __future__ import annotations

#: The types that an endpoint can subscribe to, under OpenAI's names.
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
