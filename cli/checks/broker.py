"""Redis."""

from __future__ import annotations

from typing import Any

import redis

from cli.checks.findings import Findings, error, ok, warning
from jobs import advice, redis_clients
from jobs.settings import Settings

#: The first version of Redis with all that is used.
MIN_REDIS = (6, 2)
TIMEOUT = 5.0
#: The share of its memory above which there is a warning.
FULL = 0.9
#: What Redis says of its last writes to disk.
_WRITES = {
    "rdb_last_bgsave_status": "its snapshot",
    "aof_last_write_status": "its append-only file",
}


def check(settings: Settings) -> Findings:
    """Whether Redis responds, and how it keeps what it holds."""
    with redis_clients.connect(settings.redis, timeout=TIMEOUT, decode_responses=True) as client:
        client.ping()
        try:
            info: dict[str, Any] = client.info()
        except redis.ResponseError:
            yield warning(
                "Redis responds, but does not let this user run INFO: allow that, so that the rest can be checked"
            )
            return
        version = str(info["redis_version"])
        if tuple(int(part) for part in version.split(".")[:2]) < MIN_REDIS:
            yield error(f"Redis is {version}: install {'.'.join(map(str, MIN_REDIS))} or newer")
        else:
            yield ok(f"Redis {version} responds")
        if not info.get("aof_enabled"):
            yield warning(
                "Redis keeps no append-only file, so a restart delays waiting jobs: set appendonly yes"
            )
        for name, what in _WRITES.items():
            if info.get(name, "ok") != "ok":
                yield error(
                    f"Redis could not write {what}, and then may take no messages: look at its log, and make room on its disk"
                )
        limit = info.get("maxmemory") or 0
        if limit and info["used_memory"] > FULL * limit:
            yield warning(
                f"Redis uses {info['used_memory'] >> 20} MiB of maxmemory, which is {limit >> 20} MiB: raise it"
            )
        for sentence in advice.about_redis(client):
            yield warning(sentence)
