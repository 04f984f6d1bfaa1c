"""API keys are cached, revoked ones only for seconds."""

from __future__ import annotations

import threading
from typing import Any
from unittest.mock import Mock

import pytest
from sqlalchemy.exc import OperationalError

from jobs.use_cases import keys, queries
from tests.integration.web.client import ask
from tests.integration.web.with_keys import browser, code, program
from tests.servers import PATIENCE
from web import key_cache


def test_keys_are_cached_and_revoked_within_seconds(
    app: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    alice, visitor = program(app), browser(app)
    job_id = ask(alice)["id"]
    assert visitor.get("/jobs").status_code == 200
    with monkeypatch.context() as patch:
        for name in ("find", "find_by_session"):
            patch.setattr(keys, name, Mock(side_effect=AssertionError, __name__=name))
        assert alice.get(f"/v1/responses/{job_id}").status_code == 200
        assert visitor.get("/jobs").status_code == 200
    app.extensions["helixq"].keys.close()
    database = app.extensions["helixq"].database
    used = {key.id for key, _ in keys.list_keys(database) if key.last_used_at is not None}
    assert alice.key.id in used

    events = alice.get(f"/v1/responses/{job_id}?stream=true").iter_encoded()
    assert b"response.created" in next(events)
    monkeypatch.setattr(key_cache, "TTL", 0)
    monkeypatch.setattr(app.extensions["helixq"].keys, "_entries", {})
    keys.revoke(database, alice.key.id)
    assert code(alice.get(f"/v1/responses/{job_id}")) == (401, "invalid_api_key")
    assert b"response.completed" not in b"".join(events), "the stream ends, and not with the job"
    assert queries.get_job(database, alice.key.owner, job_id).finished_at is None


def test_without_the_database_a_key_gets_503(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    alice = program(app)
    away = OperationalError("", {}, Exception("away"))
    monkeypatch.setattr(keys, "find", Mock(side_effect=away, __name__="find"))
    assert code(alice.get("/v1/models")) == (503, "unavailable")


def test_a_use_that_cannot_be_recorded_is_logged_and_hurts_no_request(
    app: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    away = OperationalError("", {}, Exception("away"))
    monkeypatch.setattr(keys, "mark_used", Mock(side_effect=away))
    assert program(app).get("/v1/models").status_code == 200
    app.extensions["helixq"].keys.close()
    assert "the use of API keys was not recorded: away" in caplog.text


def test_closing_waits_until_uses_are_recorded(app: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that is closed before would keep the connection of the thread that records them."""
    recording, release, recorded = threading.Event(), threading.Event(), threading.Event()

    def record(*_: Any) -> None:
        recording.set()
        assert release.wait(PATIENCE)
        recorded.set()

    monkeypatch.setattr(keys, "mark_used", record)
    assert program(app).get("/v1/models").status_code == 200
    assert recording.wait(PATIENCE)
    closing = threading.Thread(target=app.extensions["helixq"].keys.close)
    closing.start()
    assert closing.is_alive()
    release.set()
    closing.join(PATIENCE)
    assert recorded.is_set()
