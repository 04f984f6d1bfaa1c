"""Responses and events match the types of the openai package and the schema of openresponses.org."""

from __future__ import annotations

from typing import Any

import pytest
from openai.types.responses import Response, ResponseStreamEvent
from openresponses_types import types as openresponses
from pydantic import BaseModel, TypeAdapter

from jobs.models import Job, Status
from jobs.protocol.events import events
from jobs.protocol.response import response
from tests.unit.protocol.rows import add_attempt, completed_job, make_job

#: OpenAI's names of these events; openresponses.org has ``response.reasoning.delta`` and ``.done``.
OPENAI_ONLY = {"response.reasoning_text.delta", "response.reasoning_text.done"}


def cancelled_job() -> Job:
    job = make_job(Status.CANCELLED)
    add_attempt(job, 0, finish_reason="length")
    return job


OPTIONS = {
    "tool_choice": "auto",
    "truncation": "auto",
    "reasoning": {"effort": "low", "summary": "auto"},
    "text": {"format": {"type": "text"}, "verbosity": "medium"},
    "user": "u",
    "prompt_cache_retention": "24h",
    "max_tool_calls": 3,
}
JOBS = {
    "queued": make_job(),
    "completed": completed_job(rounds=2),
    "cancelled": cancelled_job(),
    "failed": make_job(Status.FAILED, error_code="server_error", error_message="No."),
    "with options": completed_job(options=OPTIONS, turns=[], previous_response_id="resp_1"),
}


def open_events() -> dict[str, type[BaseModel]]:
    """Return openresponses.org's model of each type of event."""
    models = {
        name: model
        for name, model in vars(openresponses).items()
        if name.endswith("StreamingEvent")
    }
    names = {}
    for model in models.values():
        [kind] = model.model_fields["type"].annotation
        names[kind.value] = model
    return names


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_a_response_is_valid(job: Job) -> None:
    body = response(job)
    Response.model_validate(body, strict=True)
    openresponses.ResponseResource.model_validate(body)


@pytest.mark.parametrize("job", JOBS.values(), ids=JOBS)
def test_events_are_valid(job: Job) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
    models = open_events()
    for number, event in enumerate(events(job, {})):
        assert event is not None
        message = {**event, "sequence_number": number}
        adapter.validate_python(message)
        if event["type"] not in OPENAI_ONLY:
            models[event["type"]].model_validate(message)
