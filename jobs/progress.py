"""Live events of a job: what the worker says while the database does not know it yet.

One Redis stream a job. An entry is either a piece of a stage's text or the bare news that
the job's row changed. Nothing is lost with it: whoever reads it reads the database too,
and goes on with the database alone while Redis is away.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

log = logging.getLogger(__name__)

#: Seconds a stream outlives its last entry.
EXPIRY = 3600
#: Seconds between looks at the database while Redis is away.
POLL = 0.5
TIMEOUT = 3


@dataclass(frozen=True)
class Text:
    """Pieces of a stage's text, in order."""

    attempt_id: int
    #: How many pieces of this attempt came before these.
    start: int
    deltas: list[str]


@dataclass(frozen=True)
class News:
    """What one read brought."""

    texts: list[Text]
    #: Whether the job's rows may have changed.
    changed: bool
    #: Where the next read goes on.
    cursor: str


class Progress:
    """Both ends of the streams. Threads may share it."""

    def __init__(self, redis_url: str) -> None:
        self._redis = redis.Redis.from_url(
            redis_url,
            socket_connect_timeout=TIMEOUT,
            socket_timeout=TIMEOUT,
            # A connection that an earlier server left behind is replaced at once; more than
            # that would hold up work that can do without Redis.
            retry=Retry(NoBackoff(), 1),
            decode_responses=True,
        )
        self._away = threading.Event()

    def close(self) -> None:
        self._redis.close()

    def ping(self) -> None:
        """Ask Redis for a sign of life; raises `redis.RedisError`."""
        self._redis.ping()

    def changed(self, job_id: str) -> None:
        """Tell that the job's rows changed."""
        self.tell([(job_id, None)])

    def tell(self, news: Sequence[tuple[str, Text | None]]) -> None:
        """Tell several things at once, in their order.

        Args:
            news: job ids, each with the next pieces of its text, or None: its rows changed.
        """
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for job_id, text in news:
                    pipe.xadd(_key(job_id), _fields(text))
                for job_id in dict(news):
                    pipe.expire(_key(job_id), EXPIRY)
                pipe.execute()
        except redis.RedisError as error:
            # Readers see the stage when it is recorded; the work itself must go on.
            if not self._away.is_set():
                log.warning("live progress is not shown while Redis is away: %s", error)
            self._away.set()
        else:
            self._away.clear()

    def read(self, job_id: str, cursor: str = "0", block: float = 0) -> News:
        """Read what came after an earlier read, waiting for it if there is nothing yet.

        Args:
            job_id: whose stream.
            cursor: of the earlier read; ``"0"`` is the start.
            block: seconds to wait for news, at most 1; 0 does not wait.

        Returns:
            The news. While Redis is away, after a pause: that the rows may have changed.
        """
        started = time.monotonic()
        try:
            milliseconds = round(min(block, 1.0) * 1000) or None
            # redis-py types the replies of every protocol and version at once.
            reply: Any = self._redis.xread({_key(job_id): cursor}, block=milliseconds)
        except redis.RedisError:
            left = min(block, POLL) - (time.monotonic() - started)
            time.sleep(max(0.0, left))  # as the read would have waited: its callers must not spin
            return News([], changed=True, cursor=cursor)
        entries = reply[0][1] if reply else []
        return News(
            [Text(*json.loads(fields["text"])) for _, fields in entries if "text" in fields],
            changed=any("changed" in fields for _, fields in entries),
            cursor=entries[-1][0] if entries else cursor,
        )


def _fields(text: Text | None) -> dict[Any, Any]:  # (redis-py's dict is invariant)
    if text is None:
        return {"changed": "1"}
    return {"text": json.dumps([text.attempt_id, text.start, text.deltas])}


def _key(job_id: str) -> str:
    return f"helixq:live:{job_id}"
