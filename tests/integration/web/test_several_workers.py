"""Workers with different contexts, as during an upgrade."""

from __future__ import annotations

import pytest

from jobs.database import Database
from jobs.models import WorkerState
from jobs.protocol.tokens import TokenCounter
from jobs.use_cases import workers
from jobs.use_cases.workers import Runtime
from tests.conftest import WORKER
from tests.integration.web.client import Client


def test_a_question_must_fit_the_context_of_every_ready_worker(
    web: Client, database: Database, tokenizer_json: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TokenCounter, "REFRESH", 0.0)

    def refused(limit: int) -> bool:
        body = {"input": "Why?", "background": True, "max_output_tokens": limit}
        reply = web.post("/v1/responses", json=body)
        if reply.status_code == 202:
            return False
        assert reply.json["error"]["code"] == "context_length_exceeded"
        return True

    workers.set_state(database, WORKER, WorkerState.READY)
    for name, context in (("small", 512), ("large", 8192)):
        runtime = Runtime({"engine": "none"}, context, tokenizer_json)
        workers.register(database, name, "localhost", 2, runtime)
        assert [refused(300), refused(2000)] == [name == "large", True]
        workers.set_state(database, name, WorkerState.READY)
        assert [refused(300), refused(2000)] == [True, True]
    workers.set_state(database, "small", WorkerState.STOPPED)
    assert [refused(300), refused(2000)] == [False, True]
    workers.set_state(database, WORKER, WorkerState.STOPPED)
    assert [refused(300), refused(2000)] == [False, False]
