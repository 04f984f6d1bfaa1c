"""The parameters of a question, as OpenAI's Responses API has them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from jobs import pipeline
from jobs.protocol.base import RequestObject
from jobs.protocol.items import Input, ItemReference, Message, text_or_list
from jobs.protocol.options import CommonOptions, ResponseOptions

#: What comes before the question in the prompts: nothing, or the turns before it.
Context = Literal["question", "turns"]
#: The maximum number of characters of a stop string.
MAX_STOP = 256
_StopString = Annotated[str, Field(max_length=MAX_STOP)]
#: Where the final text ends: before the first of these strings. An empty string, which some clients send, is none.
Stop = Annotated[
    Annotated[_StopString, Tag("<text>")]
    | Annotated[list[_StopString], Field(max_length=4, fail_fast=True), Tag("<list>")],
    Discriminator(text_or_list),
]
Metadata = Annotated[
    dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


class CommonParameters(RequestObject):
    """The parameters that responses and chat completions share."""

    model: str | None = None
    stream: bool | None = None
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    metadata: Metadata | None = None
    # HelixQ's own. OpenAI's chat completions have `seed` and `stop` too.
    context: Context | None = None
    top_k: int | None = Field(default=None, ge=0, le=1 << 20)
    seed: int | None = Field(default=None, ge=0, le=pipeline.MAX_SEED)
    stop: Stop | None = None
    rounds: int | None = Field(default=None, ge=1, le=pipeline.MAX_ROUNDS)
    priority: int | None = Field(default=None, ge=0, le=pipeline.MAX_PRIORITY)


class CreateResponse(CommonParameters, ResponseOptions):
    """The parameters of ``POST /v1/responses``."""

    input: Input
    instructions: str | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    #: The maximum number of new tokens of each stage.
    max_output_tokens: int | None = Field(default=None, ge=1, le=1 << 20)

    @property
    def asks_turns(self) -> bool:
        """Whether the prompts contain earlier turns. To name a response is to ask for its turns."""
        if self.context is None:
            return self.previous_response_id is not None
        return self.context == "turns"

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """The strings that end the final text."""
        strings = [self.stop] if isinstance(self.stop, str) else self.stop or ()
        return tuple(filter(None, strings))

    @property
    def refers_to_input(self) -> bool:
        """Whether the input refers to what was asked earlier, which may be the question or the system prompt."""
        return not isinstance(self.input, str) and any(map(refers_to_input, self.input))

    @property
    def messages(self) -> list[Message]:
        """The messages of the input; none if it is a text."""
        if isinstance(self.input, str):
            return []
        return [item for item in self.input if isinstance(item, Message)]

    @property
    def input_items(self) -> list[dict[str, Any]] | None:
        """The items of the input as they were sent, without members that are null; None for a text."""
        if isinstance(self.input, str):
            return None
        return [
            item if isinstance(item, dict) else item.model_dump(exclude_unset=True)
            for item in self.input
        ]

    @property
    def question(self) -> str:
        """The input text, or the text of the last user message; empty if there is none."""
        if isinstance(self.input, str):
            return self.input
        return next((m.text for m in reversed(self.messages) if m.role == "user"), "")

    @property
    def system_prompt(self) -> str:
        """``instructions``, or the last system or developer message, or the model card's prompt."""
        if self.instructions is not None:
            return self.instructions
        return next(
            (m.text for m in reversed(self.messages) if m.role in ("system", "developer")),
            pipeline.DEFAULT_SYSTEM,
        )


def refers_to_input(item: object) -> bool:
    """Return whether an item of the input refers to one of an earlier response's input; see `input_item_list`."""
    return isinstance(item, ItemReference) and item.id.startswith("msg_input_")


def supported(request: type[CommonParameters], options: type[CommonOptions]) -> tuple[str, ...]:
    """Return the parameters that change something, in the order in which errors list them: the question comes first."""
    names = [name for name in request.model_fields if name not in options.model_fields]
    return tuple(sorted(names, key=lambda name: name in CommonParameters.model_fields))


SUPPORTED = supported(CreateResponse, ResponseOptions)
