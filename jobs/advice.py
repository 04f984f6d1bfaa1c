"""What of the servers' settings will go wrong one day: said at start, a sentence each."""

from __future__ import annotations

import redis
import sqlalchemy as sa

from jobs.database import POOL_SIZE, Database
from jobs.use_cases import workers

#: How many connections PostgreSQL has for this role and database, and how many of them others have.
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
    """Say what is unwise about a database that answers.

    Args:
        database: which.
        processes: of HelixQ that there are besides the workers that are ready: each has its connections.
    """
    if database.engine.dialect.name != "postgresql":
        return []
    try:
        processes += len(workers.list_ready(database))
        with database.engine.connect() as connection:
            room, others = connection.execute(_CONNECTIONS).one()
            lasting = {
                name: connection.exec_driver_sql(f"SHOW {name}").scalar()
                for name in ("fsync", "synchronous_commit")
            }
    except sa.exc.SQLAlchemyError:
        return []  # whoever asks next is told
    found = []
    if room - others < processes * POOL_SIZE:
        found.append(
            f"PostgreSQL has room for {room} connections, of which others use {others}, and {processes} "
            f"processes of HelixQ may open {POOL_SIZE} each: raise its max_connections, or the limit of the "
            "role or database, unless a pooler stands in between"
        )
    found += [
        f"PostgreSQL's {name} is off, so that jobs that were accepted can be lost with its machine's power: "
        "switch it on"
        for name, value in lasting.items()
        if value == "off"
    ]
    return found


def about_redis(client: redis.Redis) -> list[str]:
    """Say what is unwise about a Redis that answers."""
    try:
        memory = client.info("memory")
    except redis.RedisError:
        return []  # it is away again, or this user may not ask
    policy = memory.get("maxmemory_policy", "noeviction")
    if not memory.get("maxmemory") or policy == "noeviction":
        return []
    return [
        f"Redis drops what it holds when its memory is full (maxmemory-policy {policy}), messages included, "
        "which then come later: set noeviction"
    ]
