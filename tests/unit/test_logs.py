"""Lines of the log: nobody forges one, or moves the cursor of who reads it. Libraries write them, too."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context

import pytest

from jobs.logs import bound, formatter, visible

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
    with bound(from_a_header=FORGED):
        [line] = formatter("json", "web").format(record(FORGED, error)).split("\n")
        assert json.loads(line)["from_a_header"] == FORGED
        bad, *_ = formatter("text", "web").format(record("a", error)).split("\n")
        assert bad.endswith(f"failed: a from_a_header={visible(FORGED)}")
    first, *rest = formatter("text", "web").format(record(FORGED, error)).split("\n")
    assert first.endswith(visible(f"failed: {FORGED}"))
    assert (rest == []) == (error is None)
    assert all(line.startswith("  ") for line in rest), "a traceback is indented"
    assert json.loads(line)["message"] == f"failed: {FORGED}"
    for text in (first, *rest, bad, line):
        assert text.isprintable(), text


def test_texts_without_control_characters_are_as_they_are() -> None:
    for text in ("Über\t日本語 👩‍🚀", "שלום", "a  b"):
        assert visible(text) == text


def test_lines_have_what_is_bound_in_their_thread_whoever_writes_them() -> None:
    """Also those of libraries. Text leaves out what the message says itself."""
    made = {name: formatter(name, "worker") for name in ("json", "text")}

    def lines() -> tuple[dict[str, object], str]:
        about = logging.LogRecord(
            "celery", logging.WARNING, "x.py", 1, "%s: slow", ("resp_1",), None
        )
        return json.loads(made["json"].format(about)), made["text"].format(about)

    with bound(job_id="resp_1"), bound(role="critic", attempt=2):
        as_json, as_text = lines()
        with ThreadPoolExecutor(1) as pool:
            other, _ = pool.submit(lines).result()
            context = copy_context()
            handed, _ = pool.submit(context.run, lines).result()
    ids = {"job_id": "resp_1", "role": "critic", "attempt": 2}
    common = {"level": "warning", "logger": "celery", "message": "resp_1: slow"}
    assert as_json == handed | {"time": as_json["time"]}
    assert as_json.items() >= {**ids, **common}.items()
    assert other.items() >= common.items()
    assert not ids.keys() & other.keys()
    assert list(as_json)[:5] == ["time", "level", "logger", "pid", "message"]
    assert re.fullmatch(
        r"\d\d:\d\d:\d\d worker WARNING resp_1: slow (role=critic attempt=2|attempt=2 role=critic)",
        as_text,
    )


#: A worker that reads its tokenizer from the hub, whose client has a handler of its own.
LIBRARY_WARNS = """
import logging
from jobs import logs, settings
from worker import remote_engine
logs.configure("json", "worker")
try:
    remote_engine._tokenizer_text(settings.Settings(base_model="nobody/nothing"))
except remote_engine.RemoteError:
    logging.getLogger("huggingface_hub.http").warning("Retrying in 1s")
"""


def test_what_a_library_logs_comes_once_and_in_the_format() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", LIBRARY_WARNS],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(ended.stderr)["message"] == "Retrying in 1s"
