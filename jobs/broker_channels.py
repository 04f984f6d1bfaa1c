"""What Celery reads and writes in Redis: only messages that are ours, also on the primary that Sentinel names.

They are Kombu's channels, which are virtual: all channels of a process share its connections to Redis.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from queue import Empty
from typing import Any

from kombu.transport import redis as kombu_redis
from redis.exceptions import ResponseError
from redis.sentinel import SentinelConnectionPool

from jobs import messages
from jobs.redis_clients import WRONG_TYPE, Sentinels
from jobs.redis_url import sentinel_url

log = logging.getLogger(__name__)


class Client(kombu_redis.PrefixedStrictRedis):
    """Kombu's client. It drops messages that are not ours before Kombu sees them."""

    def parse_response(self, connection: Any, command_name: str, **options: Any) -> Any:
        reply = super().parse_response(connection, command_name, **options)
        if command_name == "BRPOP" and reply and (fault := messages.fault_of(reply[1])):
            log.warning("a message in Redis is discarded, since it is no stage of a job: %s", fault)
            return None
        return reply


class Channel(kombu_redis.Channel):
    """Kombu's channel with this client. It deletes values of other types in the place of a queue's lists.

    Kombu would fail at such a value, connect again and fail again, and take no message of any queue.
    """

    #: Messages that were taken and not acknowledged are not restored when it closes: the sweep publishes them, and while
    #: Redis is away Kombu would write them to a file.
    do_restore = False

    def _get_client(self) -> Any:
        return partial(Client, global_keyprefix=self.global_keyprefix)

    def _queue_bind(self, *_: Any) -> None:
        """Write no binding to Redis: messages are sent to their queues by name."""

    def maybe_refresh_binding_expiry(self) -> None:
        """Do nothing: there are no bindings."""

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]  # celery-types lacks it
        except ResponseError as error:
            if WRONG_TYPE not in str(error):
                raise
        self._delete_others(self.active_queues)
        raise Empty  # As if it had waited in vain.

    def _size(self, queue: str) -> int:
        try:
            return int(super()._size(queue))
        except ResponseError as error:
            if WRONG_TYPE not in str(error):
                raise
        self._delete_others([queue])
        return int(super()._size(queue))

    def _delete_others(self, queues: Iterable[str]) -> None:
        """Delete values that are not lists in the place of queues."""
        key_of: Any = self._q_for_pri  # type: ignore[attr-defined]  # (the same)
        with self.conn_or_acquire() as client:
            for key in [key_of(queue, step) for queue in queues for step in self.priority_steps]:
                try:
                    client.llen(key)
                except ResponseError as error:
                    if WRONG_TYPE not in str(error):
                        raise
                    if client.delete(key):
                        name = f"{self.global_keyprefix}{key}"
                        log.warning("%r in Redis was deleted: it was no list of messages", name)


class Transport(kombu_redis.Transport):
    """Kombu's transport with this channel."""

    Channel = Channel


class UnixTransport(Transport):
    """The same for the URL of a Unix socket, which the channel reads, and not the connection."""

    can_parse_url = True


class SentinelChannel(Channel, kombu_redis.SentinelChannel):
    """Kombu's channel to the primary that Sentinel names, with the program's own `Sentinels`.

    The option ``redis_url`` of the transport has them. In Kombu they are alternative broker URLs, each of which needs
    user, password and number again, and while no primary is up, it would try each of them in turn.
    """

    from_transport_options = (*kombu_redis.SentinelChannel.from_transport_options, "redis_url")
    redis_url: str
    socket_timeout: float

    def _sentinel_managed_pool(self, asynchronous: bool = False) -> Any:
        url = sentinel_url(self.redis_url)
        assert url is not None  # noqa: S101 (no other URL has this transport)
        sentinels = Sentinels(url, self.socket_timeout)
        # Kombu closes them with the channel.
        if asynchronous:
            self._async_sentinel_manager = sentinels
        else:
            self._sentinel_manager = sentinels
        parameters = self._connparams(asynchronous)  # type: ignore[attr-defined]  # celery-types lacks it
        del parameters["host"], parameters["port"]
        return SentinelConnectionPool(url.name, sentinels, **parameters)  # type: ignore[no-untyped-call]  # no types there


class SentinelTransport(kombu_redis.SentinelTransport):
    """Kombu's transport with this channel."""

    Channel = SentinelChannel
