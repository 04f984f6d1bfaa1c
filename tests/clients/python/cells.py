"""What the clients' scripts share: the questions, and how they report. It needs the standard library alone.

A script asks the server of `tests.clients.worker`. It has functions that are checks, named after the
columns of the table: ``turns``, ``silence``, ``stop``, ``cancel`` and ``errors``. Each raises if the client does
not do what its user would expect.
"""

from __future__ import annotations

import faulthandler
import functools
import gc
import json
import os
import sys
import threading
import traceback
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any

#: Two turns: only who knows the first can answer the second.
NAME, WHO, WHO_ANSWER = "My name is Ada.", "What is my name?", "Your name is Ada."
#: Its answer is silent for longer than `TIMEOUT`; the comments in between keep the connection alive.
SILENT, SILENT_ANSWER = "Stay silent for a while.", "You said: Stay silent for a while."
TIMEOUT = 18.0
#: Seconds after which a script is stuck.
HANGS = 150.0
#: A question, and a stop string that cuts its answer.
STOPPED, STOP, STOPPED_ANSWER = "Stop before the end of this.", " end", "You said: Stop before the"
#: Its answer ends when it is cancelled. Each program has its own.
ENDLESS = f"Tell an endless story about {os.getpid()}."
#: A parameter that is refused, and a part of the message that says so.
BAD_TEMPERATURE, BAD_TEMPERATURE_MESSAGE = 9.0, "Invalid value for `temperature`"
#: Models and responses that do not exist.
UNKNOWN_MODEL, UNKNOWN_MODEL_MESSAGE = "other", "No such model: 'other'"
UNKNOWN_ID, UNKNOWN_ID_MESSAGE = "resp_00000000000000000000000000000000", "No such job"


def each(value: object, *checks: Callable[..., object]) -> list[Callable[[], object]]:
    """Return the checks with their argument, such as the API that they should use."""
    return [functools.wraps(check)(functools.partial(check, value)) for check in checks]


def run(**apis: Sequence[Callable[[], object]]) -> None:
    """Run the checks of each API, and print the outcome of each as a line of JSON.

    Args:
        apis: by the name of a row in the table, with ``_`` for a space. What a check returns is a note.
    """
    # Shows where a check hangs.
    faulthandler.dump_traceback_later(HANGS)
    checks = [(api.replace("_", " "), check) for api, checks in apis.items() for check in checks]
    # Those of a silent stream wait at the same time, and while the others run.
    waiting = [
        threading.Thread(target=_run, args=[api, check])
        for api, check in checks
        if check.__name__.startswith("silence")
    ]
    for thread in waiting:
        thread.start()
    for api, check in checks:
        if not check.__name__.startswith("silence"):
            _run(api, check)
    for thread in waiting:
        thread.join()
    faulthandler.cancel_dump_traceback_later()


def _run(api: str, check: Callable[[], object]) -> None:
    outcome = {"api": api, "check": check.__name__.split("_")[0], "error": None, "note": None}
    try:
        outcome["note"] = check()
    except Exception as error:  # noqa: BLE001 (whatever it is, the table shows it)
        outcome["error"] = f"{type(error).__name__}: {error}"
        traceback.print_exc()
    # Streams that were not read to the end are closed now. httpcore waits forever if one is closed by a
    # collection of garbage that happens to run while the same thread has the lock of its pool.
    gc.collect()
    # In one piece: several threads print.
    sys.stdout.write(json.dumps(outcome, default=str) + "\n")
    sys.stdout.flush()


def expect(actual: object, expected: object) -> None:
    """Check that two values are the same."""
    if actual != expected:
        raise AssertionError(f"{actual!r} instead of {expected!r}")


def expect_error(call: Callable[[], object], message: str) -> Exception:
    """Check that a call raises an error with a part of HelixQ's message; return it."""
    try:
        result = call()
    except Exception as error:
        if message in str(error) or message in str(getattr(error, "body", "")):
            return error
        raise AssertionError(f"{error!r} does not have {message!r}") from error
    raise AssertionError(f"{result!r} instead of an error with {message!r}")


def cancel_by_id(response_id: str) -> None:
    """Cancel a response as any program can, for clients that have no method for it."""
    response_id = response_id.replace("chatcmpl-", "resp_")
    expect(_call("POST", f"/responses/{response_id}/cancel")["status"], "cancelled")


def cancel_by_question(question: str) -> str:
    """Cancel a response whose id the client does not show; return a note that says so."""
    response_id = find(question)
    if response_id is None:
        raise AssertionError(f"no open response has the question {question!r}")
    cancel_by_id(response_id)
    return "id not shown"


def find(question: str) -> str | None:
    """Return the id of the response with a question that has not ended, if there is one."""
    for status in ("queued", "in_progress"):  # In this order: it may go from one to the other.
        for response in _call("GET", f"/responses?status={status}&limit=100")["data"]:
            items = _call("GET", f"/responses/{response['id']}/input_items")["data"]
            if question in json.dumps(items):
                return response["id"]
    return None


def _call(method: str, path: str) -> dict[str, Any]:
    request = urllib.request.Request(
        os.environ["OPENAI_BASE_URL"] + path,
        method=method,
        headers={"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"},
    )
    with urllib.request.urlopen(request) as reply:
        return json.load(reply)
