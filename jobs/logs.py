"""Logging to standard error: text, or JSON lines (`HELIXQ_LOG_FORMAT`)."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType

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


class TextFormatter(logging.Formatter):
    """Formats each record as a line of text, and its traceback if it has one."""

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
        return json.dumps(line, ensure_ascii=False)


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
