"""What a page says about a field that is wrong: with its label, in the place of a parameter's name."""

from __future__ import annotations

from collections.abc import Mapping

from jobs.protocol.errors import ProtocolError


def field_of(error: ProtocolError) -> str:
    """Return the parameter that is wrong, without the path within it; empty if it is none."""
    return (error.param or "").partition(".")[0]


def message_of(error: ProtocolError, labels: Mapping[str, str]) -> str:
    """Return what is wrong.

    Args:
        error: names a parameter in backticks.
        labels: of the fields, by the names of their parameters.
    """
    label = labels.get(field_of(error))
    return error.message if label is None else error.message.replace(f"`{error.param}`", label)
