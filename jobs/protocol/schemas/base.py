"""What all replies have in common: the base of their shapes, pages of lists, and types of members."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, WithJsonSchema

#: Unix time in seconds.
Timestamp = Annotated[int, Field(description="Unix time in seconds.")]
Time = Annotated[str, Field(json_schema_extra={"format": "date-time"})]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
JobId = Annotated[str, Field(pattern=r"^resp_[0-9a-f]{32}$")]
Model = Literal["helixnet"]
# The description says less than is true of these, because OpenAPI Generator's clients for Python cannot be
# generated with members that are always null, and refuse replies with booleans that have one value.
AlwaysTrue = Annotated[Literal[True], WithJsonSchema({"type": "boolean"})]
NoText = Annotated[None, WithJsonSchema({"type": ["string", "null"]})]
NoList = Annotated[None, WithJsonSchema({"type": ["array", "null"], "items": {}})]
NoObject = Annotated[None, WithJsonSchema({"type": ["object", "null"]})]


class Reply(BaseModel):
    """An object of a reply. It has no other members."""

    model_config = ConfigDict(extra="forbid")


class Page(Reply):
    """A page of a list; what is derived from it has the list itself, `data`."""

    object: Literal["list"]
    first_id: str | None
    last_id: str | None
    has_more: bool
