"""Messages in a real Redis."""

from __future__ import annotations

import redis

from jobs.queue import KEY_PREFIX, make_app
from tests.servers import RedisServer


def test_a_message_that_was_taken_is_not_put_back(redis_server: RedisServer) -> None:
    """Kombu would, or into a file where Redis is away; the sweep publishes what is lost."""
    app = make_app(redis_server.url)
    key = f"{KEY_PREFIX}taken"
    with redis.Redis.from_url(redis_server.url) as client:
        with app.connection_for_write() as connection:
            messages = connection.SimpleQueue("taken")
            messages.put("news")
            assert client.llen(key) == 1
            assert messages.get(timeout=10).payload == "news"
        assert client.llen(key) == 0
