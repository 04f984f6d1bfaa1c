"""How Redis URLs are spelled for Celery."""

from typing import Any

import pytest

from jobs.broker import broker_options


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
