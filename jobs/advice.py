"""Warnings about settings of PostgreSQL and Redis that can cause trouble later, one sentence each."""

from __future__ import annotations

import redis
import sqlalchemy as sa

from jobs.database import Database
from jobs.database_engine import MAX_CONNECTIONS
from jobs.use_cases import workers

#: The maximum number of connections for this role and database, and the number of those in use by others.
_CONNECTIONS = sa.text("""
SELECT least(
    current_setting('max_connections')::int - current_setting('superuser_reserved_connections')::int
      - coalesce(current_setting('reserved_connections', true), '0')::int,
    (SELECT nullif(datconnlimit, -1) FROM pg_database WHERE datname = current_database()),
    (SELECT nullif(rolconnlimit, -1) FROM pg_roles WHERE rolname = current_user)),
  (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend'
    AND NOT (usename = current_user AND datname = current_database()))
""")


def about_database(database: Database, processes: int) -> list[str]:
    """Return warnings about a database's settings.

    Args:
        database: one that responds.
        processes: the number of processes of HelixQ, besides the workers that are ready. Each has its own
            connections.
    """
    if database.engine.dialect.name != "postgresql":
        return []
    try:
        processes += len(workers.list_ready(database))
        with database.engine.connect() as connection:
            room, used = connection.execute(_CONNECTIONS).one()
            lasting = {
                name: connection.exec_driver_sql(f"SHOW {name}").scalar()
                for name in ("fsync", "synchronous_commit")
            }
    except sa.exc.SQLAlchemyError:
        return []  # The next caller gets the error.
    warnings = []
    if room - used < processes * MAX_CONNECTIONS:
        warnings.append(
            f"PostgreSQL has room for {room} connections, of which others use {used}, and {processes} "
            f"processes of HelixQ may open {MAX_CONNECTIONS} each: raise its max_connections, or the limit of the "
            "role or database, unless a pooler is in between"
        )
    warnings += [
        f"PostgreSQL's {name} is off, so a power failure can lose jobs that were accepted: switch it on"
        for name, value in lasting.items()
        if value == "off"
    ]
    return warnings


def about_redis(client: redis.Redis) -> list[str]:
    """Return warnings about the settings of a Redis that responds."""
    try:
        memory = client.info("memory")
    except redis.RedisError:
        return []  # Redis is away again, or this user lacks the permission.
    policy = memory.get("maxmemory_policy", "noeviction")
    if not memory.get("maxmemory") or policy == "noeviction":
        return []
    return [
        f"Redis drops keys when its memory is full (maxmemory-policy {policy}), messages too, so stages start later: "
        "set noeviction"
    ]
