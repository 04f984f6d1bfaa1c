"""Logging to standard error: text, or JSON lines (`HELIXQ_LOG_FORMAT`).

The program and its libraries log with the standard library. structlog's formatter makes the lines, and adds what is
bound to the context: a request, a job, a stage. Each thread has its own context. So does each asyncio task, which
starts with a copy of its creator's.
"""

from __future__ import annotations

import datetime as dt
import io
import json
import logging
import re
import sys
import traceback
from collections.abc import MutableMapping
from contextlib import AbstractContextManager
from typing import Any, TextIO

import structlog
from structlog.contextvars import bind_contextvars, bound_contextvars, clear_contextvars
from structlog.dev import Column, ConsoleRenderer, KeyValueColumnFormatter
from structlog.stdlib import ProcessorFormatter

#: Characters that move a terminal's cursor, begin a line, or show text in another order: C0 but for tabs, C1, the
#: separators of lines and paragraphs, and overrides of direction.
_CONTROLS = re.compile(
    "[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]"
)

Line = MutableMapping[str, Any]


def bound(**fields: str | int) -> AbstractContextManager[None]:
    """Add fields to all lines that are logged within the block, such as a job's id."""
    return bound_contextvars(**fields)


def begin(**fields: str | int) -> None:
    """Set the fields of all lines that are logged from now on, and drop those before."""
    clear_contextvars()
    bind_contextvars(**fields)


def visible(text: str) -> str:
    """Return a text in one line, with its control characters as escapes such as ``\\x1b``."""
    return _CONTROLS.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


def formatter(log_format: str, program: str) -> ProcessorFormatter:
    """Return the formatter that turns log records into lines; see `configure`."""
    processors: list[structlog.types.Processor]
    if log_format == "json":
        processors = [
            _describe,
            structlog.contextvars.merge_contextvars,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_to_json),
        ]
    else:

        def name(_logger: Any, _method: str, line: Line) -> Line:
            record: logging.LogRecord = line["_record"]
            line["time"] = dt.datetime.fromtimestamp(record.created).strftime("%H:%M:%S")  # noqa: DTZ006 (local)
            line["program"], line["level"] = program, record.levelname
            return line

        processors = [
            name,
            structlog.contextvars.merge_contextvars,
            _make_visible,
            ConsoleRenderer(
                columns=[
                    _column("time"),
                    _column("program", width=6),
                    _column("level", width=7),
                    _column("event"),
                    Column("", KeyValueColumnFormatter("", "", "", value_repr=str)),
                ],
                exception_formatter=_write_traceback,
                sort_keys=False,
            ),
        ]
    return ProcessorFormatter(
        processors=[processors[0], ProcessorFormatter.remove_processors_meta, *processors[1:]]
    )


def configure(log_format: str, program: str) -> None:
    """Configure the logging of this process.

    Args:
        log_format: ``text`` or ``json``.
        program: a name that each line of text shows.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter(log_format, program))
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    for package in ("cli", "jobs", "web", "worker"):
        logging.getLogger(package).setLevel(logging.INFO)
    logging.captureWarnings(capture=True)


def take_over(*packages: str) -> None:
    """Let libraries that are imported by now log as everything else does.

    They have handlers of their own, whose lines are in no format, or come twice.
    """
    for package in packages:
        logger = logging.getLogger(package)
        logger.handlers.clear()
        logger.propagate = True


def _describe(_logger: Any, _method: str, line: Line) -> Line:
    """Say when and where a line of JSON is from."""
    record: logging.LogRecord = line["_record"]
    return {
        "time": dt.datetime.fromtimestamp(record.created, dt.UTC).isoformat(),
        "level": record.levelname.lower(),
        "logger": record.name,
        "pid": record.process,
        "message": line.pop("event"),
        **line,
    }


def _to_json(line: Line, **_: Any) -> str:
    # JSON escapes some control characters itself. The others are all within its strings.
    return _CONTROLS.sub(
        lambda match: f"\\u{ord(match[0]):04x}", json.dumps(line, ensure_ascii=False, default=str)
    )


def _make_visible(_logger: Any, _method: str, line: Line) -> Line:
    """Escape control characters, so that nothing in a value begins a line; leave out fields that the message repeats."""
    message = visible(line["event"])
    shown = {
        name: visible(value) if isinstance(value, str) else value
        for name, value in line.items()
        if name in ("time", "level", "program")
        or not isinstance(value, str)
        or value not in message
    }
    return {**shown, "event": message}


def _write_traceback(file: TextIO, exc_info: Any) -> None:
    """Write the traceback of an exception, indented."""
    text = io.StringIO()
    traceback.print_exception(*exc_info, file=text)
    for line in text.getvalue().rstrip("\n").split("\n"):
        file.write(f"\n  {visible(line)}")


def _column(name: str, width: int = 0) -> Column:
    return Column(name, KeyValueColumnFormatter(None, "", "", value_repr=str, width=width))
