"""Logging to standard error: text, or JSON lines (`HELIXQ_LOG_FORMAT`)."""

from __future__ import annotations

import datetime as dt
import json
import logging
import sys


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
    if log_format == "json":
        handler.setFormatter(JSONFormatter())
    else:
        line = f"%(asctime)s {program:<6} %(levelname)-7s %(message)s"
        handler.setFormatter(logging.Formatter(line, datefmt="%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for room in ("cli", "jobs", "web", "worker"):
        logging.getLogger(room).setLevel(logging.INFO)
    logging.captureWarnings(capture=True)
