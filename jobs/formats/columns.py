"""The types of columns, for formats whose columns have types."""

from __future__ import annotations

from enum import StrEnum


class Kind(StrEnum):
    """The type of a column. Every value may be None too."""

    #: A value that is no text, such as the object in place of an erased one, is null in formats with typed columns.
    TEXT = "text"
    INTEGER = "integer"
    NUMBER = "number"
    BOOLEAN = "boolean"
    #: A list of texts.
    TEXTS = "texts"
    #: Any JSON value.
    JSON = "json"
