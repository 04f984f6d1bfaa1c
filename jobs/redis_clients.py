"""Clients of Redis: at one server, or at the primary that Redis Sentinel names."""

from __future__ import annotations

import os
from typing import Any

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry
from redis.sentinel import (
    MasterNotFoundError,
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedSSLConnection,
)

from jobs.errors import UserError
from jobs.redis_url import SentinelUrl, sentinel_url, tls_files

#: In the error of a command on a value of another type.
WRONG_TYPE = "WRONGTYPE"


class RedisFileError(UserError):
    """A file that the Redis URL names cannot be read."""


class Sentinels(Sentinel):
    """The sentinels of a URL. Threads may share it."""

    def __init__(self, url: SentinelUrl, timeout: float) -> None:
        """
        Args:
            url: their URL.
            timeout: seconds to wait for each of them.
        """
        tls = {} if url.tls is None else {"ssl": True, **url.tls}
        super().__init__(  # type: ignore[no-untyped-call]  # redis-py has no types there
            url.hosts,
            sentinel_kwargs={
                "username": url.sentinel_username,
                "password": url.sentinel_password,
                "socket_connect_timeout": timeout,
                "socket_timeout": timeout,
                "retry": Retry(NoBackoff(), 0),  # The next one is asked instead.
                **tls,
            },
        )
        self._names = {
            sentinel: f"{host}:{port}"
            for sentinel, (host, port) in zip(self.sentinels, url.hosts, strict=True)
        }

    def discover_master(self, service_name: str) -> tuple[str, int]:
        """Return host and port of the primary, from the first sentinel that knows one that is up.

        redis-py's own method swaps two elements of its list. Threads share the list, so a sentinel could get lost.

        Raises:
            redis.sentinel.MasterNotFoundError: none does.
        """
        sentinels, reasons = self.sentinels, []
        for sentinel in sentinels:
            where = self._names[sentinel]
            try:
                masters: Any = sentinel.sentinel_masters()
            except RedisError as error:
                reasons.append(f"{where}: {error}")
                continue
            state = masters.get(service_name)
            if state is None:
                reasons.append(f"{where} watches no {service_name}")
            elif not self.check_master_state(state, service_name):  # type: ignore[no-untyped-call]  # (the same)
                reasons.append(f"{where} says that it is down")
            else:
                # This one is asked first from now on.
                self.sentinels = [sentinel, *(each for each in sentinels if each is not sentinel)]
                return str(state["ip"]), int(state["port"])
        raise MasterNotFoundError(
            f"no sentinel knows a primary {service_name} that is up: {'; '.join(reasons)}"
        )


class _PrimaryPool(SentinelConnectionPool):
    """Connections to the primary that sentinels name."""

    sentinel_manager: Sentinels

    def disconnect(self, inuse_connections: bool = True) -> None:
        """Close connections; if all of them, those to the sentinels, too."""
        super().disconnect(inuse_connections)
        if inuse_connections:
            for sentinel in self.sentinel_manager.sentinels:
                sentinel.close()


def make_pool(
    redis_url: str, *, timeout: float, retries: int = 0, **options: Any
) -> redis.ConnectionPool:
    """Return a pool of connections. Nothing connects before the first use.

    Args:
        redis_url: as `jobs.redis_url.checked` returns it.
        timeout: seconds to wait for the server, and for each sentinel.
        retries: how often a command is tried again, at once, after its connection was lost.
        options: redis-py's own.

    Raises:
        RedisFileError: a file that the URL names cannot be read.
    """
    _check_files(redis_url)
    options = {
        "socket_connect_timeout": timeout,
        "socket_timeout": timeout,
        "retry": Retry(NoBackoff(), retries),
        **options,
    }
    url = sentinel_url(redis_url)
    if url is None:
        return redis.ConnectionPool.from_url(redis_url, **options)
    tls = {} if url.tls is None else {"connection_class": SentinelManagedSSLConnection, **url.tls}
    return _PrimaryPool(  # type: ignore[no-untyped-call]  # redis-py has no types there
        url.name,
        Sentinels(url, timeout),
        db=url.number,
        username=url.username,
        password=url.password,
        **tls,
        **options,
    )


def connect(redis_url: str, *, timeout: float, retries: int = 0, **options: Any) -> redis.Redis:
    """Return a client, which threads may share; the arguments are those of `make_pool`."""
    return redis.Redis.from_pool(make_pool(redis_url, timeout=timeout, retries=retries, **options))


def _check_files(redis_url: str) -> None:
    # redis-py's own error would not name the file.
    for option, path in tls_files(redis_url).items():
        if not os.access(path, os.R_OK):
            raise RedisFileError(
                f"{path}, which HELIXQ_REDIS_URL names as {option}, cannot be read: correct the path or its permissions"
            )
