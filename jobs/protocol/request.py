"""The parameters of a question, as OpenAI's Responses API has them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from jobs import pipeline

#: Parameters that are a string or an array.
UNIONS = ("input", "content")


def _tag(value: Any) -> str:
    return "text" if isinstance(value, str) else "list"


class Part(BaseModel):
    """One part of a message's content."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["input_text", "output_text"]
    text: str
    # Parts of an earlier response have these. They are accepted and ignored.
    annotations: list[Any] = []
    logprobs: list[Any] = []


class Message(BaseModel):
    """One message of ``input``."""

    model_config = ConfigDict(strict=True, extra="forbid")

    type: Literal["message"] = "message"
    # Messages of an earlier response have these. They are accepted and ignored.
    id: str | None = None
    status: str | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Annotated[
        Annotated[str, Tag("text")] | Annotated[list[Part], Tag("list")], Discriminator(_tag)
    ]

    @property
    def text(self) -> str:
        """The content: its parts, joined."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class CreateResponse(BaseModel):
    """The parameters of ``POST /v1/responses``."""

    model_config = ConfigDict(strict=True, extra="forbid")

    input: Annotated[
        Annotated[str, Tag("text")] | Annotated[list[Message], Tag("list")], Discriminator(_tag)
    ]
    model: str | None = None
    instructions: str | None = None
    background: bool | None = None
    stream: bool | None = None
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    max_output_tokens: int | None = Field(default=None, ge=1, le=1 << 20)
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
            Field(max_length=16),
        ]
        | None
    ) = None
    # HelixQ's own.
    top_k: int | None = Field(default=None, ge=0, le=1 << 20)
    seed: int | None = Field(default=None, ge=0, le=pipeline.MAX_SEED)
    rounds: int | None = Field(default=None, ge=1, le=pipeline.MAX_ROUNDS)
    priority: int | None = Field(default=None, ge=0, le=pipeline.MAX_PRIORITY)

    @property
    def question(self) -> str:
        """The input text, or the text of the last user message; empty if there is none."""
        if isinstance(self.input, str):
            return self.input
        return next((m.text for m in reversed(self.input) if m.role == "user"), "")

    @property
    def system_prompt(self) -> str:
        """``instructions``, or the last system or developer message, or the model card's prompt."""
        if self.instructions is not None:
            return self.instructions
        messages = [] if isinstance(self.input, str) else reversed(self.input)
        return next(
            (m.text for m in messages if m.role in ("system", "developer")),
            pipeline.DEFAULT_SYSTEM,
        )
