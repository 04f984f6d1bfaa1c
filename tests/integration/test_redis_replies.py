"""Every error reply of Redis counts as an outage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from kombu.exceptions import OperationalError

from jobs.errors import QueueUnavailableError
from jobs.pipeline import NextStage
from jobs.progress import Progress
from jobs.queue import Publisher, make_app
from tests.replying import REPLIES, ReplyingProxy
from tests.servers import RedisServer


@pytest.fixture(scope="module")
def proxy(redis_server: RedisServer) -> Iterator[ReplyingProxy]:
    with redis.Redis.from_url(redis_server.url) as client:
        client.flushdb()
    replying = ReplyingProxy(Path(redis_server.url.removeprefix("unix://")))
    yield replying
    replying.close()


@pytest.mark.parametrize("reply", REPLIES, ids=lambda reply: reply.split()[0])
def test_redis_errors_count_as_unavailable(proxy: ReplyingProxy, reply: str) -> None:
    url = f"redis://127.0.0.1:{proxy.port}/0"
    app, progress = make_app(url), Progress(url)
    publisher = Publisher(app)
    publisher.publish([NextStage("job", 0, rounds=1, priority=9)])
    with app.connection_for_read() as connection, progress.follow("job") as follower:
        connection.ensure_connection(max_retries=1)
        channel: Any = connection.default_channel  # celery-types does not know Redis's
        progress.ping()
        follower.read(0.1)
        proxy.refuse(reply)
        try:
            with pytest.raises(QueueUnavailableError):
                publisher.publish([NextStage("job", 0, rounds=1, priority=9)])
            with pytest.raises(QueueUnavailableError):
                publisher.queue_length()
            progress.publish_change("job")  # warns
            with pytest.raises(redis.RedisError):
                progress.ping()
            # A worker's consumer recovers from these errors only.
            waited_for = connection.connection_errors + connection.channel_errors
            with pytest.raises(waited_for):
                channel.client.rpop("none")
            with pytest.raises(OperationalError), app.connection_for_read() as refused:
                refused.ensure_connection(max_retries=1, interval_start=0)
        finally:
            proxy.allow()
        progress.ping()
        publisher.publish([NextStage("job", 0, rounds=1, priority=9)])
        assert publisher.queue_length() == 2
        channel.queue_purge("helixq")
    progress.close()
