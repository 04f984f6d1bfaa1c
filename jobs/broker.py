"""How Celery connects to Redis, and how often it tries when that is away."""

from __future__ import annotations

from typing import Any

import kombu
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

#: A key that never exists: to take something from it asks whether Redis takes writes.
PROBE = "probe"
#: The most seconds between two tries at a Redis that is away.
LONGEST_PAUSE = 5


class Connection(kombu.Connection):
    """A connection whose pauses between tries stay short: Kombu's own grow to half a minute.

    What was taken and not acknowledged is not put back when it ends, by Kombu's own means: the sweep
    publishes what was lost, and where Redis is away Kombu would write the messages into a file.

    A Redis that answers with an error to every write, as a replica does during a failover (``READONLY``),
    counts as away: Kombu would connect, fail at the first message, and connect again without a pause.
    """

    def _connection_factory(self) -> Any:
        found: Any = super()._connection_factory()
        channel: Any = self.default_channel  # celery-types does not know Redis's
        try:
            channel.client.rpop(PROBE)
        except ResponseError as error:
            self.collect()
            raise RedisConnectionError(f"Redis refuses to write: {error}") from error
        return found

    def channel(self) -> Any:
        found: Any = super().channel()
        found.do_restore = False
        return found

    def ensure_connection(self, *arguments: Any, **options: Any) -> Any:
        return super().ensure_connection(*arguments, **{"interval_max": LONGEST_PAUSE, **options})
