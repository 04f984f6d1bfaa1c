"""How Celery finds Redis."""

from typing import Any

import pytest
from kombu.exceptions import OperationalError

from jobs.broker import broker_options
from jobs.queue import make_app


@pytest.mark.parametrize(
    ("redis_url", "options"),
    [
        ("redis://:pw@host:6379/2", {"broker_url": "redis://:pw@host:6379/2"}),
        ("unix:///run/redis.sock", {"broker_url": "redis+socket:///run/redis.sock"}),
        (
            "unix:///run/redis.sock?db=3",
            {"broker_url": "redis+socket:///run/redis.sock?virtual_host=3"},
        ),
        (
            "rediss://host/0?ssl_ca_certs=/ca.pem",
            {
                "broker_url": "redis://host/0",
                "broker_use_ssl": {"ssl_cert_reqs": "required", "ssl_ca_certs": "/ca.pem"},
            },
        ),
    ],
)
def test_broker_options(redis_url: str, options: dict[str, Any]) -> None:
    assert broker_options(redis_url) == options


def test_a_redis_that_is_away_is_tried_every_few_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("kombu.utils.functional.sleep", lambda _: None)
    pauses: list[float] = []
    connection = make_app("unix:///nowhere/redis.sock").connection_for_read()
    with pytest.raises(OperationalError):
        connection.ensure_connection(lambda _, pause: pauses.append(pause), max_retries=20)
    assert len(pauses) >= 20
    assert max(pauses) == 5
