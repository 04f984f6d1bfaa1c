"""The web without Redis or without its database."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import Mock

import pytest
from sqlalchemy.exc import OperationalError

from jobs.models import ANONYMOUS, Status
from jobs.use_cases import outbox, queries
from tests.integration.web.client import ask, services_of, serving
from tests.servers import RedisServer


def test_questions_are_accepted_without_redis(database_url: str) -> None:
    with serving(database_url, "unix:///nowhere.sock") as web:
        database = services_of(web).database
        job = queries.get_job(database, ANONYMOUS, ask(web)["id"])
        assert (job.status, job.published_at) == (Status.QUEUED, None), "a sweep will publish it"
        # The database fails right after the commit.
        with pytest.MonkeyPatch.context() as patch:
            away = OperationalError("", {}, Exception("away"))
            patch.setattr(outbox, "mark_unpublished", Mock(side_effect=away))
            job = queries.get_job(database, ANONYMOUS, ask(web)["id"])
        assert job.status is Status.QUEUED, "the client got no error"
        reply = web.get("/readyz")
    assert (reply.status_code, reply.json["checks"]["redis"]) == (503, "unreachable")


def test_without_the_database_nothing_is_accepted(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    url = f"sqlite:///{tmp_path}/no/such/folder.sqlite3"
    with serving(url, redis_server.url, migrate=False) as web:
        reply = web.post("/v1/responses", json={"input": "Why?", "background": True})
        assert (reply.status_code, reply.json["error"]["code"]) == (503, "unavailable")
        assert "Retry-After" in reply.headers
        assert web.get("/jobs").status_code == 503
        assert web.get("/readyz").json["checks"]["database"] == "unreachable"
