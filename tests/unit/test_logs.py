"""Lines of the log: nobody forges one, or moves the cursor of who reads it."""

from __future__ import annotations

import json
import logging
import sys

import pytest

from jobs.logs import JSONFormatter, TextFormatter, visible

FORGED = "a\r\n12:00:00 web    INFO    all is well\x1b[2J\x9b1A\u2028b\u202ec\u2066d\0\x7f"


def record(message: str, error: ValueError | None = None) -> logging.LogRecord:
    info = None
    if error is not None:
        try:
            raise error
        except ValueError:
            info = sys.exc_info()
    return logging.LogRecord("web", logging.ERROR, "x.py", 1, "failed: %s", (message,), info)


@pytest.mark.parametrize("error", [None, ValueError(FORGED)])
def test_what_others_write_begins_no_line_and_moves_no_cursor(error: ValueError | None) -> None:
    first, *rest = TextFormatter("web").format(record(FORGED, error)).split("\n")
    assert first.endswith(visible(f"failed: {FORGED}"))
    assert (rest == []) == (error is None)
    assert all(line.startswith("  ") for line in rest), "a traceback is indented"
    [line] = JSONFormatter().format(record(FORGED, error)).split("\n")
    assert json.loads(line)["message"] == f"failed: {FORGED}"
    for text in (first, *rest, line):
        assert text.isprintable(), text


def test_texts_without_control_characters_are_as_they_are() -> None:
    for text in ("Über\t日本語 👩‍🚀", "שלום", "a  b"):
        assert visible(text) == text
