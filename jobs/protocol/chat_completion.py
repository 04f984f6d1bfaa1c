"""A job as OpenAI's chat completion, whole and in chunks.

The regenerator's text is the message. Drafts and critiques are ``reasoning_content``, as in other servers
of open models, each under its label of the model card's program.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from jobs import pipeline
from jobs.models import Job
from jobs.page_request import PageRequest
from jobs.pipeline import Role
from jobs.protocol.errors import CancelledError, InternalError, InvalidRequestError, ProtocolError
from jobs.protocol.input_items import page_of
from jobs.protocol.items import Message
from jobs.protocol.response import is_message, response

_FINISH_REASONS = {"completed": "stop", "incomplete": "length"}


def chat_completion(job: Job) -> dict[str, Any]:
    """Return the chat completion of a job that has ended.

    Args:
        job: with its attempts loaded.

    Raises:
        ProtocolError: the job has no answer, because it failed or was cancelled.
    """
    ended = response(job)
    if (error := error_of(ended, param="messages")) is not None:
        raise error
    stages = pipeline.stages(job.rounds)
    texts = {attempt.stage_index: attempt.output or "" for attempt in job.finished}
    reasoning = "\n\n".join(
        _label(stage.role) + texts[stage.index] for stage in stages if not is_message(job, stage)
    )
    return {
        **_common(ended, "chat.completion"),
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": texts[stages[-1].index],
                    "reasoning_content": reasoning,
                    "refusal": None,
                    "annotations": [],
                },
                "logprobs": None,
                "finish_reason": _FINISH_REASONS[ended["status"]],
            }
        ],
        "usage": _usage(ended["usage"]),
        "metadata": job.metadata_,
        "context": job.context,
    }


def completion_id(job_id: str) -> str:
    """Return the id of a job's chat completion."""
    return "chatcmpl-" + job_id.removeprefix("resp_")


def message_list(job: Job, page: PageRequest) -> dict[str, Any]:
    """Return one page of the messages that were asked, as OpenAI lists those of a stored completion.

    Args:
        job: whose messages they are, with its input items loaded.
        page: which page.

    Raises:
        CursorError: there is no message with the id ``page.after``.
    """
    sent = job.input_items or [{"role": "user", "content": job.question}]
    messages = [
        {
            "id": f"{completion_id(job.id)}-{number}",
            "role": item["role"],
            "content": Message.model_validate(item).text,
            "content_parts": None,
            "refusal": None,
        }
        for number, item in enumerate(sent)
        if "role" in item
    ]
    return page_of(messages, page)


class Chunks:
    """Turns the events of a response's stream into chunks of a chat completion."""

    def __init__(self, *, include_usage: bool) -> None:
        """
        Args:
            include_usage: whether a chunk with the usage follows the last one.
        """
        self._include_usage = include_usage
        self._common: dict[str, Any] = {}
        self._items = 0
        self._answered = False
        #: Whether the job has ended with an answer.
        self.finished = False
        #: Whether there will be none.
        self.failed = False

    def of(self, event: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the chunks of an event: none for most of them.

        The last event of a job without an answer becomes OpenAI's error object.
        """
        match event["type"]:
            case "response.created":
                self._common = _common(event["response"], "chat.completion.chunk")
                if self._include_usage:
                    self._common["usage"] = None
                yield self._chunk({"role": "assistant", "content": ""})
            case "response.in_progress" if self._answered:
                yield self._taken_back(
                    "The job started again with another model while its answer was streamed."
                )
            case "response.output_item.added" if self._answered:
                yield self._taken_back(
                    "The answer was generated again after its worker was lost, and became another one."
                )
            case "response.output_item.added" if event["item"]["type"] == "reasoning":
                role = Role(event["item"]["id"].split("_")[1])
                separator = "\n\n" if self._items else ""
                self._items += 1
                yield self._chunk({"reasoning_content": separator + _label(role)})
            case "response.reasoning_text.delta":
                yield self._chunk({"reasoning_content": event["delta"]})
            case "response.output_text.delta":
                self._answered = True
                yield self._chunk({"content": event["delta"]})
            case "response.completed" | "response.incomplete" | "response.failed":
                yield from self._last(event["response"])
            case _:
                pass

    def _taken_back(self, reason: str) -> dict[str, Any]:
        """Return the error that ends the chunks: part of an answer cannot be taken back."""
        self.failed = True
        response_id = self._common["id"].replace("chatcmpl-", "resp_", 1)
        error = InternalError(
            f"{reason} The job goes on: retrieve it as {response_id}.", code="restarted"
        )
        return {"error": error.to_dict()}

    def _last(self, ended: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if (error := error_of(ended, param="messages")) is not None:
            self.failed = True
            yield {"error": error.to_dict()}
            return
        self.finished = True
        yield self._chunk({}, _FINISH_REASONS[ended["status"]])
        if self._include_usage:
            yield {**self._common, "choices": [], "usage": _usage(ended["usage"])}

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return {**self._common, "choices": [choice]}


def to_json(chunk: dict[str, Any]) -> str:
    """Return a chunk as JSON, in ASCII: some readers take U+2028 for the end of a line."""
    return json.dumps(chunk, separators=(",", ":"))


def _label(role: Role) -> str:
    return f"{pipeline.LABELS[role]}: "


def _common(of: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return the fields that a completion and all of its chunks have."""
    return {
        "id": completion_id(of["id"]),
        "object": kind,
        "created": of["created_at"],
        "model": of["model"],
        "service_tier": "default",
    }


def _usage(usage: dict[str, Any]) -> dict[str, Any]:
    return {
        "prompt_tokens": usage["input_tokens"],
        "completion_tokens": usage["output_tokens"],
        "total_tokens": usage["total_tokens"],
        "prompt_tokens_details": usage["input_tokens_details"],
        "completion_tokens_details": usage["output_tokens_details"],
    }


def error_of(ended: dict[str, Any], *, param: str) -> ProtocolError | None:
    """Return the error of a response that ended without an answer; None if it has one.

    Args:
        ended: the response.
        param: the parameter that has the question: ``input`` or ``messages``.
    """
    if ended["status"] == "cancelled":
        return CancelledError(f"The job {ended['id']} was cancelled.", code="cancelled")
    if ended["error"] is None:
        return None
    code, message = ended["error"]["code"], ended["error"]["message"]
    if code == "context_length_exceeded":
        return InvalidRequestError(message, code=code, param=param)
    return InternalError(f"The job {ended['id']} failed: {message}", code=code)
