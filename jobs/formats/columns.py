"""The types of columns, for formats whose columns have types."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """The type of a column. Every value may be None too."""

    #: What is no text, as what stands for an erased one, is null where columns have types.
    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    #: A list of texts.
    TEXTS = "texts"
    #: Any JSON value.
    JSON = "json"
