"""The question and the system prompt of a request."""

from __future__ import annotations

from typing import Any

import pytest

from jobs.pipeline import DEFAULT_SYSTEM
from jobs.protocol.request import CreateResponse

CHAT = [
    {"role": "developer", "content": "Rhyme."},
    {"role": "user", "content": "Before"},
    {"role": "assistant", "content": [{"type": "output_text", "text": "An answer"}]},
    {
        "role": "user",
        "content": [{"type": "input_text", "text": "Wh"}, {"type": "input_text", "text": "y?"}],
    },
]


@pytest.mark.parametrize(
    ("input_", "question"),
    [
        (" Why?\n", " Why?\n"),
        (CHAT, "Why?"),
        (CHAT[:2], "Before"),
        (CHAT[:1], ""),
        ([], ""),
    ],
)
def test_the_question_is_the_last_users(input_: Any, question: str) -> None:
    assert CreateResponse(input=input_).question == question


@pytest.mark.parametrize(
    ("input_", "instructions", "system_prompt"),
    [
        ("Why?", None, DEFAULT_SYSTEM),
        ("Why?", "Shout.", "Shout."),
        ("Why?", "", ""),
        (CHAT, None, "Rhyme."),
        (CHAT, "Shout.", "Shout."),
        ([*CHAT, {"role": "system", "content": "Sing."}], None, "Sing."),
        (CHAT[1:], None, DEFAULT_SYSTEM),
    ],
)
def test_instructions_go_before_system_messages(
    input_: Any, instructions: str | None, system_prompt: str
) -> None:
    request = CreateResponse(input=input_, instructions=instructions)
    assert request.system_prompt == system_prompt


def test_a_message_of_an_earlier_response_is_accepted() -> None:
    message = {
        "type": "message",
        "id": "msg_1",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Yes.", "annotations": [], "logprobs": []}],
    }
    request = CreateResponse.model_validate(
        {"input": [message, {"role": "user", "content": "Why?"}]}
    )
    assert request.question == "Why?"
