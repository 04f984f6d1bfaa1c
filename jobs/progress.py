"""Live events of a job: what the worker says while the database does not know it yet.

One Redis stream a job. An entry is either a piece of a stage's text or the bare news that
the job's row changed. Nothing is lost with it: whoever reads it reads the database too,
and goes on with the database alone while Redis is away.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobs import advice
from jobs.listening import Entries, Listener

log = logging.getLogger(__name__)

#: Seconds a stream outlives its last entry.
EXPIRY = 3600
#: Seconds to wait for Redis.
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


class Follower:
    """Gets the news of one job, for one thread."""

    def __init__(self, entries: Entries) -> None:
        self._entries = entries

    def read(self, seconds: float) -> News:
        """Give what came since the last time, waiting for it if there is nothing yet.

        Args:
            seconds: the most to wait.

        Returns:
            The news. While Redis is away, again and again that the rows may have changed.
        """
        entries, away = self._entries.take(seconds)
        return News(
            [Text(*json.loads(fields["text"])) for fields in entries if "text" in fields],
            changed=away or any("changed" in fields for fields in entries),
        )


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
        self._listener = Listener(self._redis)

    def close(self) -> None:
        self._listener.close()
        self._redis.close()

    def ping(self) -> None:
        """Ask Redis for a sign of life; raises `redis.RedisError`."""
        self._redis.ping()

    def advice(self) -> list[str]:
        """Say what is unwise about Redis' settings."""
        return advice.about_redis(self._redis)

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

    @contextmanager
    def follow(self, job_id: str) -> Iterator[Follower]:
        """Follow a job's stream from its start, beside all who follow one here."""
        with self._listener.follow(_key(job_id)) as entries:
            yield Follower(entries)


def _fields(text: Text | None) -> dict[Any, Any]:  # (redis-py's dict is invariant)
    if text is None:
        return {"changed": "1"}
    return {"text": json.dumps([text.attempt_id, text.start, text.deltas])}


def _key(job_id: str) -> str:
    return f"helixq:live:{job_id}"
