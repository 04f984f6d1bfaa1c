"""The items of a request's input: messages, and what clients send back of earlier responses."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    WithJsonSchema,
    model_validator,
)
from pydantic.config import JsonDict

from jobs.protocol.base import RequestObject
from jobs.protocol.options import unsupported

#: Parameters that are a string or an array, and what the array has.
UNIONS = {"input": "messages", "content": "parts", "stop": "strings"}
#: Parts of OpenAI's API that are known and not offered.
_UNSUPPORTED_PARTS = (
    "input_image",
    "input_file",
    "input_audio",
    "input_video",
    "image_url",
    "file",
)
#: For the description of the API: the check of the question says the same with a message of its own.
NOT_EMPTY: JsonDict = {"minItems": 1}
#: The description of the API does not mention them.
_NOTHING = WithJsonSchema({"not": {}})


def text_or_list(value: Any) -> str:
    """Return the tag of a value of `UNIONS`."""
    return "<text>" if isinstance(value, str) else "<list>"


def without_nulls(value: Any) -> Any:
    """Return a JSON value whose objects lack the members that are null: they are the same as absent."""
    if isinstance(value, dict):
        return {name: without_nulls(each) for name, each in value.items() if each is not None}
    if isinstance(value, list):
        return [without_nulls(each) for each in value]
    return value


class TextPart(RequestObject):
    """Text in a message's content."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    # Parts of an earlier response have these. They are accepted and ignored.
    annotations: list[Any] = Field(default=[])
    logprobs: list[Any] = Field(default=[])
    # Where a cache of prompts could end, for OpenAI and for Anthropic.
    prompt_cache_breakpoint: Any = None
    cache_control: Any = None


class RefusalPart(RequestObject):
    """What another model said instead of an answer, in a message's content."""

    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


def _refuse_part(value: Any) -> Any:
    raise unsupported(f"A message's content must be text, not `{value['type']}`.")


def _part_tag(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    if kind in _UNSUPPORTED_PARTS:
        return "<unsupported>"
    return "<refusal>" if kind == "refusal" else "<text>"


Part = Annotated[
    Annotated[TextPart, Tag("<text>")]
    | Annotated[RefusalPart, Tag("<refusal>")]
    | Annotated[Any, AfterValidator(_refuse_part), _NOTHING, Tag("<unsupported>")],
    Discriminator(_part_tag),
]
Content = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[list[Part], Field(fail_fast=True), Tag("<list>")],
    Discriminator(text_or_list),
]


def text_of(content: str | list[Any]) -> str:
    """Return a content's text: its parts, joined."""
    return content if isinstance(content, str) else "".join(part.text for part in content)


class AnyMessage(RequestObject):
    """What messages of responses and of chat completions share.

    Many clients keep notes in an answer that they send back: how long it took, or what they made of it. They ask
    for nothing, so members of an answer that nobody knows are left out. Those of a question may be something to
    answer, such as an attachment, and are refused.
    """

    cache_control: Any = None

    @model_validator(mode="before")
    @classmethod
    def _without_notes(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("role") != "assistant":
            return value
        message = _known(cls, value)
        if isinstance(content := message.get("content"), list):
            message["content"] = [
                _known(RefusalPart if part.get("type") == "refusal" else TextPart, part)
                if isinstance(part, dict)
                else part
                for part in content
            ]
        return message


def _known(model: type[RequestObject], value: dict[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in value.items() if name in model.model_fields}


class Message(AnyMessage):
    """A message."""

    type: Literal["message"] = "message"
    # Messages of an earlier response have these. They are accepted and ignored.
    id: str | None = None
    status: str | None = None
    phase: str | None = None
    role: Literal["user", "assistant", "system", "developer"]
    content: Content

    @property
    def text(self) -> str:
        return text_of(self.content)


class ItemReference(RequestObject):
    """The id of an item of an earlier response, in place of the item."""

    type: Literal["item_reference"] = "item_reference"
    id: str


class ReasoningItem(RequestObject):
    """A draft or a critique of an earlier response. It is accepted and ignored, with all that a client adds to it."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["reasoning"]
    id: str | None = None
    status: str | None = None
    summary: list[Any] = Field(default=[])
    content: list[Any] = Field(default=[])
    encrypted_content: str | None = None


def _refuse_item(value: Any) -> Any:
    raise unsupported(f"Items of the type `{value['type']}` are not offered: send messages.")


#: OpenAI's other types of items end in these.
_UNSUPPORTED_ITEMS = ("_call", "_output", "_tools", "_request", "_response", "_trigger", "_update")
_UNSUPPORTED_ITEM_NAMES = ("agent_message", "compaction", "program")


def _item_tag(value: Any) -> str:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    if kind is None and isinstance(value, dict) and set(value) == {"id"}:
        return "<item_reference>"
    if kind in ("item_reference", "reasoning"):
        return f"<{kind}>"
    if isinstance(kind, str) and (
        kind in _UNSUPPORTED_ITEM_NAMES or kind.endswith(_UNSUPPORTED_ITEMS)
    ):
        return "<unsupported>"
    return "<message>"


Item = Annotated[
    Annotated[Message, Tag("<message>")]
    | Annotated[ItemReference, Tag("<item_reference>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")]
    | Annotated[Any, AfterValidator(_refuse_item), _NOTHING, Tag("<unsupported>")],
    Discriminator(_item_tag),
]
Input = Annotated[
    Annotated[str, Field(json_schema_extra={"minLength": 1}), Tag("<text>")]
    | Annotated[list[Item], Field(fail_fast=True, json_schema_extra=NOT_EMPTY), Tag("<list>")],
    Discriminator(text_or_list),
]
