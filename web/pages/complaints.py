"""What a page says about a field that is wrong: with its label, in the place of a parameter's name."""

from __future__ import annotations

import re
from collections.abc import Mapping

from jobs.protocol.errors import ProtocolError


def field_of(error: ProtocolError) -> str:
    """Return the parameter that is wrong, without the path within it; empty if it is none."""
    return (error.param or "").partition(".")[0]


def message_of(error: ProtocolError, labels: Mapping[str, str]) -> str:
    """Return what is wrong.

    Args:
        error: names parameters in backticks.
        labels: of the fields, by the names of their parameters.
    """
    named = dict(labels)
    if error.param and (label := labels.get(field_of(error))):
        named[error.param] = label
    return re.sub("`([^`]+)`", lambda match: named.get(match[1], match[0]), error.message)
