"""Celery's connection to Redis."""

import pytest
from kombu.exceptions import OperationalError

from jobs.queue import make_app


def test_connecting_to_redis_is_retried_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kombu.utils.functional.sleep", lambda _: None)
    pauses: list[float] = []
    connection = make_app("unix:///nowhere/redis.sock").connection_for_read()
    with pytest.raises(OperationalError):
        connection.ensure_connection(lambda _, pause: pauses.append(pause), max_retries=20)
    assert len(pauses) >= 20
    assert max(pauses) == 5
