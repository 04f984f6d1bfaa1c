"""The shapes of what was asked."""

from __future__ import annotations

from typing import Literal

from pydantic import ConfigDict

from jobs.protocol.items import RefusalPart
from jobs.protocol.schemas.base import Page, Reply


class InputText(Reply):
    """Text as it was sent, with what else the part had."""

    model_config = ConfigDict(extra="allow")

    type: Literal["input_text", "output_text"]
    text: str


class InputMessage(Reply):
    type: Literal["message"]
    id: str
    status: Literal["completed"]
    role: Literal["user", "assistant", "system", "developer"]
    content: list[InputText | RefusalPart]


class OtherInputItem(Reply):
    """A reasoning item or an item reference, as it was sent."""

    model_config = ConfigDict(extra="allow")

    type: Literal["item_reference", "reasoning"]
    id: str


class InputItemList(Page):
    """A page of what was asked."""

    data: list[InputMessage | OtherInputItem]
