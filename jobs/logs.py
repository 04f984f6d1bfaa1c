"""Logging to standard error: text, or JSON lines (`HELIXQ_LOG_FORMAT`)."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys
from contextvars import ContextVar

#: The id of the request that this thread serves; None outside of requests.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


class TextFormatter(logging.Formatter):
    """Formats each record as a line of text, and its traceback if it has one."""

    def __init__(self, program: str) -> None:
        super().__init__(
            f"%(asctime)s {program:<6} %(levelname)-7s %(message)s%(request)s", datefmt="%H:%M:%S"
        )

    def format(self, record: logging.LogRecord) -> str:
        current = request_id.get()
        record.request = "" if current is None else f" [{current}]"
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
        }
        if (current := request_id.get()) is not None:
            line["request_id"] = current
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
