"""How URLs are spelled for Kombu."""

import pytest

from jobs.queue import broker_url


@pytest.mark.parametrize(
    ("redis_url", "kombu"),
    [
        ("redis://:pw@host:6379/2", "redis://:pw@host:6379/2"),
        ("rediss://host/0", "rediss://host/0"),
        ("unix:///run/redis.sock", "redis+socket:///run/redis.sock"),
        ("unix:///run/redis.sock?db=3", "redis+socket:///run/redis.sock?virtual_host=3"),
    ],
)
def test_broker_url(redis_url: str, kombu: str) -> None:
    assert broker_url(redis_url) == kombu
