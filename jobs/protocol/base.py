"""What the objects of requests have in common."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class RequestObject(BaseModel):
    """An object of a request. It has no other members, and no value is converted to the type of its member."""

    model_config = ConfigDict(strict=True, extra="forbid")
