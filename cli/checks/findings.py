"""What checks find."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    ERROR = "error"


@dataclass(frozen=True)
class Finding:
    """What a check found."""

    level: Level
    #: What is so, and after a colon what to do about it.
    message: str


@dataclass(frozen=True)
class Result:
    """A finding with the name of its check."""

    check: str
    level: Level
    message: str

    def to_dict(self) -> dict[str, str]:
        """Return it as JSON."""
        return asdict(self)


Findings = Iterator[Finding]


def ok(message: str) -> Finding:
    return Finding(Level.OK, message)


def warning(message: str) -> Finding:
    return Finding(Level.WARNING, message)


def error(message: str) -> Finding:
    return Finding(Level.ERROR, message)
