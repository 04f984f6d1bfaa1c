"""Celery's connection to Redis: through Sentinel too, with retries while Redis is away, and only for messages that are ours."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from functools import partial
from queue import Empty
from typing import Any

import kombu
from kombu import connection as kombu_connection
from kombu.transport import redis as kombu_redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.sentinel import SentinelConnectionPool

from jobs import messages
from jobs.redis_clients import WRONG_TYPE, Sentinels
from jobs.redis_url import sentinel_url

log = logging.getLogger(__name__)

#: A key that never exists: popping from it checks whether Redis accepts writes.
PROBE = "probe"
#: The maximum number of seconds between two tries to connect.
MAX_RETRY_DELAY = 5


class Connection(kombu.Connection):
    """Kombu's connection, with five changes.

    - The delay between two tries stays short; Kombu's grows to half a minute.
    - Messages that were taken and not acknowledged are not restored when it closes: the sweep publishes
      them, and while Redis is away Kombu would write them to a file.
    - A Redis that rejects all writes, such as a replica during a failover (``READONLY``), counts as away.
      Kombu would connect, fail at the first message, and connect again without a delay.
    - Messages that are none of ours are discarded (`jobs.messages`).
    - No bindings are written to Redis. Messages need none, and what is in their place could be no set.
    """

    def get_transport_cls(self) -> Any:
        return _ours(super().get_transport_cls())

    def Pool(self, limit: int | None = None, **_: Any) -> Pool:  # noqa: N802 (Kombu's name)
        return Pool(self, limit)

    def _connection_factory(self) -> Any:
        connection: Any = super()._connection_factory()
        channel: Any = self.default_channel  # celery-types does not know Redis channels.
        try:
            channel.client.rpop(PROBE)
        except ResponseError as error:
            self.collect()
            raise RedisConnectionError(f"Redis rejects writes: {error}") from error
        return connection

    def channel(self) -> Any:
        channel: Any = super().channel()
        channel.do_restore = False
        return channel

    def ensure_connection(self, *arguments: Any, **options: Any) -> Any:
        return super().ensure_connection(*arguments, **{"interval_max": MAX_RETRY_DELAY, **options})


class PooledConnection(kombu_connection.PooledConnection):
    """Kombu's connection of a pool, from which messages are published, with this transport."""

    def get_transport_cls(self) -> Any:
        return _ours(super().get_transport_cls())  # type: ignore[misc]  # celery-types lacks it


class Pool(kombu_connection.ConnectionPool):
    """Kombu's pool, with these connections."""

    def new(self) -> Any:
        return PooledConnection(self, **dict(self.connection._info(resolve=False)))


def _ours(transport: Any) -> Any:
    """Return our transport in the place of Kombu's."""
    return Transport if transport is kombu_redis.Transport else transport


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
