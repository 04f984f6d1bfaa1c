"""What many stages wait for at once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy.exc import OperationalError

from worker import database_retries
from worker.database_retries import DatabaseRetries

STAGES = 16


def test_an_outage_does_not_fill_the_log_with_warnings_of_all_stages_that_wait(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(database_retries, "MIN_RETRY_DELAY", 0.001)
    with_retries = DatabaseRetries(threading.Event())

    def call_until_it_responds() -> str:
        calls = 0

        def call() -> str:
            nonlocal calls
            calls += 1
            if calls <= 3:
                raise OperationalError("SELECT 1", {}, Exception("terminated"))
            return "text"

        return with_retries(call)

    with ThreadPoolExecutor(STAGES) as threads:
        stages = [threads.submit(call_until_it_responds) for _ in range(STAGES)]
    assert [stage.result() for stage in stages] == ["text"] * STAGES
    assert caplog.messages == ["the database does not respond, trying again: terminated"]
