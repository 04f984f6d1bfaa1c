"""Logging to standard error: text, or JSON lines (`HELIXQ_LOG_FORMAT`)."""

from __future__ import annotations

import datetime as dt
import json
import logging
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import Any

#: What moves a terminal's cursor, begins a line, or shows text in another order: C0 but for tabs, C1, the
#: separators of lines and paragraphs, and overrides of direction.
_CONTROLS = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)
_NOTHING: Mapping[str, str | int] = MappingProxyType({})
#: What this thread works on, by the names of the fields that each of its lines has.
_context: ContextVar[Mapping[str, str | int]] = ContextVar("context", default=_NOTHING)


@contextmanager
def bound(**fields: str | int) -> Iterator[None]:
    """Add fields to all lines that this thread logs within the block, such as a job's id."""
    token = _context.set({**_context.get(), **fields})
    try:
        yield
    finally:
        _context.reset(token)


def begin(**fields: str | int) -> None:
    """Set the fields of all lines that this thread logs from now on, and drop those before."""
    _context.set(fields or _NOTHING)


def visible(text: str) -> str:
    """Return a text in one line, with its control characters as escapes such as ``\\x1b``."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class TextFormatter(logging.Formatter):
    """Formats each record as a line of text, and its traceback, indented, if it has one.

    What others write into a message begins no line of its own.
    """

    def __init__(self, program: str) -> None:
        super().__init__(
            f"%(asctime)s {program:<6} %(levelname)-7s %(message)s%(ids)s", datefmt="%H:%M:%S"
        )

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        # The ids that it does not have itself; numbers say little without their names.
        fields = _context.get().values()
        ids = [each for each in fields if isinstance(each, str) and each not in message]
        record.ids = f" [{' '.join(ids)}]" if ids else ""
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 (logging's name)
        """Format a record without its traceback."""
        return visible(super().formatMessage(record))

    def formatException(self, ei: Any) -> str:  # noqa: N802 (logging's name)
        """Format the traceback of an exception."""
        lines = super().formatException(ei).split("\n")
        return "\n".join(f"  {visible(line)}" for line in lines)


class JSONFormatter(logging.Formatter):
    """Formats each record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
            **_context.get(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        # JSON escapes some control characters itself. The others are all within its strings.
        return _CONTROLS.sub(
            lambda match: f"\\u{ord(match[0]):04x}", json.dumps(line, ensure_ascii=False)
        )


def configure(log_format: str, program: str) -> None:
    """Configure the logging of this process.

    Args:
        log_format: ``text`` or ``json``.
        program: a name that each line of text shows.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONFormatter() if log_format == "json" else TextFormatter(program))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for room in ("cli", "jobs", "web", "worker"):
        logging.getLogger(room).setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
