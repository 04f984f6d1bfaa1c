"""What runs and what waits: the system, the queue, health and metrics."""

from __future__ import annotations

from jobs.protocol import schemas
from jobs.protocol.system import PauseQueue
from web.openapi.operations.description import COMMON_ERRORS, ERRORS, Operation, Reply

_METRICS_ERRORS = {
    status: Reply(ERRORS[status], media="text/plain") for status in sorted(COMMON_ERRORS)
}

OPERATIONS = {
    "api.get_system": Operation(
        "Audits",
        {200: Reply("What runs and what waits.", schemas.SystemState)},
    ),
    "api.pause_queue": Operation(
        "Audits",
        {200: Reply("The queue is paused.", schemas.PauseChange)},
        body=PauseQueue,
    ),
    "api.resume_queue": Operation(
        "Audits",
        {200: Reply("The queue is not paused.", schemas.PauseChange)},
    ),
    "api.retrieve_job_place": Operation(
        "Audits",
        {200: Reply("The job's place in the queue.", schemas.QueuePlace)},
        errors=(404,),
    ),
    "health.healthz": Operation(
        "Health", {200: Reply("The process responds.", schemas.Alive)}, is_open=True
    ),
    "health.readyz": Operation(
        "Health",
        {
            200: Reply("Everything responds.", schemas.Readiness),
            503: Reply("Something does not.", schemas.Readiness),
        },
        is_open=True,
    ),
    "metrics.get_metrics": Operation(
        "Health",
        {
            200: Reply("The metrics.", media=("text/plain", "application/openmetrics-text")),
            **_METRICS_ERRORS,
        },
    ),
}
