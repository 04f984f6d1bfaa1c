"""How many requests a minute an API key may make, counted in Redis for all web processes.

This uses `limits`, the library below Flask-Limiter. Flask-Limiter itself sets `Retry-After` on every reply,
which tells clients here when to poll again, and while Redis is away it lets requests wait for it.
"""

from __future__ import annotations

import logging
import math
import threading
import time

import redis
from flask import Flask, Response, g
from limits import RateLimitItemPerMinute
from limits.storage import RedisStorage
from limits.strategies import SlidingWindowCounterRateLimiter

from jobs import redis_clients
from jobs.settings import Settings
from web.caller import get_caller
from web.errors import HTTPError

log = logging.getLogger(__name__)

#: Seconds to wait for Redis.
TIMEOUT = 0.25
#: Seconds for which Redis is not asked again after it did not respond.
AWAY_FOR = 5.0


class RateLimits:
    """Counts the requests of keys that have a limit. Threads share it."""

    def __init__(self, redis_url: str) -> None:
        self._pool = redis_clients.make_pool(
            redis_url,
            timeout=TIMEOUT,
            max_connections=1000,  # More than there are threads.
        )
        storage = RedisStorage("redis://", connection_pool=self._pool, key_prefix="helixq:limit")
        self._limiter = SlidingWindowCounterRateLimiter(storage)
        self._lock = threading.Lock()
        self._away_until = -math.inf

    def close(self) -> None:
        """Close all connections."""
        self._pool.disconnect()

    def hit(self, key_id: str, per_minute: int) -> tuple[bool, dict[str, str], int]:
        """Count a request. While Redis is away, requests are neither counted nor limited.

        Args:
            key_id: of the key.
            per_minute: the maximum number of requests.

        Returns:
            whether it is allowed; the headers of its response, named as OpenAI names them; and the
            number of seconds until a request is allowed again.
        """
        with self._lock:
            if time.monotonic() < self._away_until:
                return True, {}, 0
        item = RateLimitItemPerMinute(per_minute)
        try:
            allowed = self._limiter.hit(item, key_id)
            stats = self._limiter.get_window_stats(item, key_id)
        except redis.RedisError as error:
            with self._lock:
                self._away_until = time.monotonic() + AWAY_FOR
            log.warning("requests are not limited while Redis is away: %s", error)
            return True, {}, 0
        seconds = max(1, math.ceil(stats.reset_time - time.time()))
        headers = {
            "X-RateLimit-Limit-Requests": str(per_minute),
            "X-RateLimit-Remaining-Requests": str(stats.remaining),
            "X-RateLimit-Reset-Requests": f"{seconds}s",
        }
        return allowed, headers, seconds


def init_app(app: Flask, settings: Settings) -> None:
    """Limit the requests of an application's API keys."""
    if settings.auth_required:
        limits = app.extensions["helixq.rate_limits"] = RateLimits(settings.redis)
        app.before_request(lambda: _check(limits))
        app.after_request(_add_headers)


def close(app: Flask) -> None:
    """Close the connections of an application's limits."""
    limits: RateLimits | None = app.extensions.get("helixq.rate_limits")
    if limits is not None:
        limits.close()


def _check(limits: RateLimits) -> None:
    """Refuse a request that is one too many."""
    # What is open to everybody has no caller.
    key = get_caller().key if "caller" in g else None
    if key is None or key.requests_per_minute is None:
        return
    allowed, g.rate_limit_headers, seconds = limits.hit(key.id, key.requests_per_minute)
    if not allowed:
        raise HTTPError(
            429,
            f"This API key may make {key.requests_per_minute} requests a minute. Retry in {seconds} s.",
            code="rate_limit_exceeded",
            headers={"Retry-After": str(seconds)},
        )


def _add_headers(response: Response) -> Response:
    response.headers.update(g.get("rate_limit_headers", {}))
    return response
