"""Messages in a real Redis."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from jobs.errors import QueueUnavailableError
from jobs.messages import MAX_SIZE, task_name
from jobs.pipeline import MAX_PRIORITY, MAX_ROUNDS, NextStage, Role
from jobs.queue import KEY_PREFIX, MODEL_QUEUE_EXPIRY, Publisher, make_app
from tests.servers import RedisServer


def test_a_received_message_is_not_requeued(redis_server: RedisServer) -> None:
    """Kombu would do so. The sweep publishes lost messages."""
    app = make_app(redis_server.url)
    key = f"{KEY_PREFIX}helixq"
    with redis.Redis.from_url(redis_server.url) as client:
        client.delete(key)
        Publisher(app).publish([NextStage("job", 0, MAX_ROUNDS, MAX_PRIORITY)])
        assert client.llen(key) == 1
        longest: Any = client.lindex(key, 0)
        assert len(longest) < MAX_SIZE / 4
        with app.connection_for_write() as connection:
            assert connection.SimpleQueue("helixq").get(timeout=10).payload[0] == ["job", 0]
        assert client.llen(key) == 0


def test_what_is_no_list_is_in_nobodys_way(
    redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    app, key = make_app(redis_server.url), f"{KEY_PREFIX}helixq"
    publisher = Publisher(app)
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushdb()
        client.set(key, b"\xff")
        with pytest.raises(QueueUnavailableError, match="WRONGTYPE"):
            publisher.publish([NextStage("job", 0, MAX_ROUNDS, MAX_PRIORITY)])
        assert publisher.queue_length() == 0
        assert f"'{key}' in Redis was deleted: it was no list of messages" in caplog.text
        publisher.publish([NextStage("job", 0, MAX_ROUNDS, MAX_PRIORITY)])
        assert publisher.queue_length() == 1
        assert not client.keys("*_kombu*"), "no other value could be in the place of its tables"
        client.flushdb()


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
        publisher.publish([NextStage("job", 0, 1, 9, model="digest")])
        assert client.llen(own) == 2, "a first stage that was claimed and released"
        publisher.publish([NextStage("job", 0, 1, 9)])
        Publisher(make_app(redis_server.url)).publish([NextStage("job", 0, 1, 9)])
        assert (client.llen(own), client.llen(questions)) == (2, 2)
        assert publisher.queue_length() == 2
        client.delete(own, questions)


def test_many_jobs_go_to_redis_at_once_and_in_their_order(redis_server: RedisServer) -> None:
    key = f"{KEY_PREFIX}helixq"
    app = make_app(redis_server.url)
    stages = [NextStage(f"job-{number}", 0, 1, MAX_PRIORITY) for number in range(50)]
    with redis.Redis.from_url(redis_server.url) as client:
        client.delete(key)
        Publisher(app).publish(stages[:1])  # connects
        before = client.info("stats")["total_reads_processed"]
        Publisher(app).publish(stages[1:])
        assert client.info("stats")["total_reads_processed"] - before < len(stages) // 2
        with app.connection_for_read() as connection:
            queue = connection.SimpleQueue("helixq")
            received = [queue.get(timeout=10) for _ in stages]
        client.delete(key)
    assert [message.payload[0] for message in received] == [[each.job_id, 0] for each in stages]
    links = received[-1].payload[2]["chain"]
    assert [(link["task"], link["args"]) for link in reversed(links)] == [
        ("helixq.critic", ["job-49", 1]),
        ("helixq.regenerator", ["job-49", 2]),
    ]
