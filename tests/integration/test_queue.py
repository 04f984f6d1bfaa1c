"""Messages in a real Redis."""

from __future__ import annotations

import redis

from jobs.pipeline import Role
from jobs.queue import KEY_PREFIX, MODEL_QUEUE_EXPIRY, Publisher, make_app, task_name
from tests.servers import RedisServer


def test_a_received_message_is_not_requeued(redis_server: RedisServer) -> None:
    """Kombu would do so. The sweep publishes lost messages."""
    app = make_app(redis_server.url)
    key = f"{KEY_PREFIX}taken"
    with redis.Redis.from_url(redis_server.url) as client:
        with app.connection_for_write() as connection:
            messages = connection.SimpleQueue("taken")
            messages.put("news")
            assert client.llen(key) == 1
            assert messages.get(timeout=10).payload == "news"
        assert client.llen(key) == 0


def test_later_stages_go_to_the_models_queue(redis_server: RedisServer) -> None:
    own, questions = f"{KEY_PREFIX}helixq.digest", f"{KEY_PREFIX}helixq"
    app = make_app(redis_server.url, "digest")
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushdb()  # earlier tests leave messages of other priorities
        # As Celery sends the next task of a chain that another process created.
        app.send_task(task_name(Role.CRITIC), args=("job", 1), priority=0)
        assert (client.llen(own), client.llen(questions)) == (1, 0)
        assert 0 < client.ttl(own) <= MODEL_QUEUE_EXPIRY, "until it is unused"
        publisher = Publisher(app)
        publisher.publish("job", stage_index=0, rounds=1, priority=9, model="digest")
        assert client.llen(own) == 2, "a first stage that was claimed and released"
        publisher.publish("job", stage_index=0, rounds=1, priority=9)
        Publisher(make_app(redis_server.url)).publish("job", stage_index=0, rounds=1, priority=9)
        assert (client.llen(own), client.llen(questions)) == (2, 2)
        assert publisher.queue_length() == 2
        client.delete(own, questions)
