"""The shapes of models."""

from __future__ import annotations

from typing import Literal

from jobs.protocol.schemas.base import Model, Reply, Timestamp


class ServedModel(Reply):
    id: Model
    object: Literal["model"]
    created: Timestamp
    owned_by: str


class ModelList(Reply):
    object: Literal["list"]
    data: list[ServedModel]
