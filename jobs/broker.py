"""Celery's connection to Redis, with short retries while Redis is away. Its transport is one of `jobs.broker_channels`."""

from __future__ import annotations

from typing import Any

import kombu
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

#: A key that never exists: popping from it checks whether Redis accepts writes.
PROBE = "probe"
#: The maximum number of seconds between two tries to connect.
MAX_RETRY_DELAY = 5


class Connection(kombu.Connection):
    """Kombu's connection, with two changes.

    - The delay between two tries stays short; Kombu's grows to half a minute.
    - A Redis that rejects all writes, such as a replica during a failover (``READONLY``), counts as away.
      Kombu would connect, fail at the first message, and connect again without a delay.
    """

    def _connection_factory(self) -> Any:
        connection: Any = super()._connection_factory()
        channel: Any = self.default_channel  # celery-types does not know Redis channels.
        try:
            channel.client.rpop(PROBE)
        except ResponseError as error:
            self.collect()
            raise RedisConnectionError(f"Redis rejects writes: {error}") from error
        return connection

    def ensure_connection(self, *arguments: Any, **options: Any) -> Any:
        return super().ensure_connection(*arguments, **{"interval_max": MAX_RETRY_DELAY, **options})
