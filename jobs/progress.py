"""Live progress of jobs: what workers publish before it is in the database.

There is one Redis stream for each job. An entry is some pieces of a stage's text, a note that the job's
rows changed, or one that an attempt's text has ended: the worker was lost, and what it may still publish is
nobody's text. Nothing depends on it: readers read the database too, and only the database while
Redis is away.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import redis

from jobs import advice, logs, redis_clients
from jobs.listening import Listener
from jobs.subscriptions import Fields, Subscription

log = logging.getLogger(__name__)

#: Seconds after its last entry for which a stream is kept, and after the entry that its job has ended: readers that are
#: behind then find all of its text in the database.
EXPIRY, EXPIRY_OF_ENDED = 3600, 60
#: Seconds to wait for Redis.
TIMEOUT = 3


@dataclass(frozen=True)
class TextDeltas:
    """Consecutive pieces of an attempt's text. The first entry of an attempt may have none: it has begun."""

    #: The attempt's (`jobs.models.text_id`).
    text_id: str
    #: The number of pieces of this attempt before these.
    start: int
    deltas: list[str]


@dataclass(frozen=True)
class Update:
    """The entries that one read returned."""

    texts: list[TextDeltas]
    #: Whether the job's rows may have changed.
    changed: bool


class Follower:
    """Reads the stream of one job, for one thread."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription
        #: The ids of the texts that have ended.
        self._closed: set[str] = set()

    def read(self, timeout: float) -> Update:
        """Return the entries since the last read, or wait for some.

        Args:
            timeout: the maximum number of seconds to wait.

        Returns:
            the entries. While Redis is away, each read says that the rows may have changed.
        """
        entries, away = self._subscription.take(timeout)
        texts = _texts(entries, self._closed)
        return Update(texts, changed=away or any("changed" in fields for fields in entries))


class Progress:
    """Publishes and follows the progress of jobs. Threads may share it."""

    def __init__(self, redis_url: str) -> None:
        # One retry replaces a connection to a server that was restarted. More of them would delay work that
        # does not need Redis.
        self._redis = redis_clients.connect(
            redis_url,
            timeout=TIMEOUT,
            retries=1,
            decode_responses=True,
            # What workers write is UTF-8. What is not must not keep all streams from being read.
            encoding_errors="replace",
        )
        self._away = threading.Event()
        self._listener = Listener(self._redis)

    def close(self) -> None:
        """Close all connections."""
        self._listener.close()
        self._redis.close()

    def ping(self) -> None:
        """Check that Redis responds.

        Raises:
            redis.RedisError: it does not.
        """
        self._redis.ping()

    def advice(self) -> list[str]:
        """Return warnings about Redis's settings, one sentence each."""
        return advice.about_redis(self._redis)

    def publish_change(self, job_id: str) -> None:
        """Publish that a job's rows changed."""
        self.publish([(job_id, None)])

    def publish(
        self,
        updates: Sequence[tuple[str, TextDeltas | None]],
        ended: Collection[str] = (),
    ) -> None:
        """Publish several updates at once, in their order. If Redis is away, they are dropped.

        Args:
            updates: job ids, each with the next pieces of its text, or None if its rows changed.
            ended: those of the ids whose jobs have ended.
        """
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for job_id, text in updates:
                    pipe.xadd(_key(job_id), _fields(text))
                for job_id in dict(updates):
                    seconds = EXPIRY_OF_ENDED if job_id in ended else EXPIRY
                    pipe.expire(_key(job_id), seconds)
                # Its own errors would quote the commands, and so the texts.
                for reply in pipe.execute(raise_on_error=False):
                    if isinstance(reply, redis.RedisError):
                        raise reply
        except redis.RedisError as error:
            # Readers get the text when the stage is recorded; the stage itself must go on.
            if not self._away.is_set():
                log.warning("live progress is not published: %s", error)
            self._away.set()
        else:
            self._away.clear()

    def close_texts(self, texts: Collection[tuple[str, str]]) -> dict[str, list[str]]:
        """End the texts of attempts whose workers were lost: readers get nothing more of them.

        Args:
            texts: the ids of their jobs, and their own.

        Returns:
            the pieces that were published, by the id of the text. A text is left out if it is unknown: Redis is away, or
            has lost it.
        """
        try:
            with self._redis.pipeline(transaction=False) as pipe:
                for job_id, text_id in texts:
                    pipe.xadd(_key(job_id), {"closed": text_id})
                    pipe.expire(_key(job_id), EXPIRY)
                    pipe.xrange(_key(job_id))
                replies = pipe.execute(raise_on_error=False)
            for reply in replies:
                if isinstance(reply, redis.RedisError):
                    raise reply
        except redis.RedisError as error:
            log.warning("texts of lost workers are not kept: %s", error)
            return {}
        found = zip(texts, replies[2::3], strict=True)
        published = {
            text_id: _published([fields for _, fields in entries], text_id)
            for (_, text_id), entries in found
        }
        return {text_id: pieces for text_id, pieces in published.items() if pieces is not None}

    def forget(self, job_id: str) -> None:
        """Delete the pieces of text of a job that has ended or was deleted. Without it, they expire."""
        try:
            self._redis.unlink(_key(job_id))
        except redis.RedisError as error:
            with logs.bound(job_id=job_id):
                log.warning(
                    "%s: its live progress stays in Redis for up to %d s: %s", job_id, EXPIRY, error
                )

    @contextmanager
    def follow(self, job_id: str) -> Iterator[Follower]:
        """Follow a job's stream from its start, over the connection that all followers here share."""
        with self._listener.subscribe(_key(job_id)) as subscription:
            yield Follower(subscription)


def _fields(text: TextDeltas | None) -> dict[Any, Any]:  # redis-py's dict is invariant.
    if text is None:
        return {"changed": "1"}
    return {"text": json.dumps([text.text_id, text.start, text.deltas])}


def _texts(entries: Iterable[Fields], closed: set[str]) -> list[TextDeltas]:
    """Return the texts of entries, without what came after an attempt's text had ended.

    Args:
        entries: of a job's stream, in their order.
        closed: the ids of texts that have ended; new ones are added.
    """
    texts = []
    is_ours = True
    for fields in entries:
        if "closed" in fields:
            closed.add(fields["closed"])
        if "text" not in fields:
            continue
        text = _parsed(fields["text"])
        if text is None:
            is_ours = False
        elif text.text_id not in closed:
            texts.append(text)
    if not is_ours:
        log.warning("entries of live progress in Redis are ignored: they are no text of a stage")
    return texts


def _published(entries: Sequence[Fields], text_id: str) -> list[str] | None:
    """Return the pieces of a text up to its end, which is among the entries; None if Redis has lost any."""
    texts = [text for text in _texts(entries, set()) if text.text_id == text_id]
    pieces: list[str] = []
    for text in texts:
        if text.start > len(pieces):
            return None
        # Else it was published twice: the reply to the first time was lost.
        if text.start == len(pieces):
            pieces += text.deltas
    return pieces if texts else None


def _parsed(text: str) -> TextDeltas | None:
    """Return the text of an entry; None if it is none that `_fields` made."""
    try:
        text_id, start, deltas = json.loads(text)
    except (ValueError, TypeError, RecursionError):
        return None
    is_ours = type(text_id) is str and type(start) is int and type(deltas) is list
    if not is_ours or not all(type(delta) is str for delta in deltas):
        return None
    return TextDeltas(text_id, start, deltas)


def _key(job_id: str) -> str:
    return f"helixq:live:{job_id}"
