"""A migrated database and a Redis for a benchmark that starts the rest of a service itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from cli import embedded_redis, parts
from jobs.database import Database
from jobs.progress import Progress
from jobs.settings import Settings
from jobs.stop_signals import StopSignals


@dataclass(frozen=True)
class Servers:
    """What the processes of a service share."""

    database: Database
    progress: Progress
    #: The process id of Redis.
    redis: int
    #: The settings of the processes: where database and Redis are.
    environ: dict[str, str]


@contextmanager
def run(settings: Settings) -> Iterator[Servers]:
    """Migrate the database, and run Redis until the end of the block.

    Args:
        settings: with the database's URL, and the folder of Redis.

    Raises:
        ExpectedError: Redis does not start.
    """
    with ExitStack() as stack:
        parts.migrate(settings, "head")
        redis = embedded_redis.start(settings, stack)
        stack.callback(redis.stop, StopSignals())
        database, progress = Database(settings.database), Progress(settings.redis)
        stack.callback(database.close)
        stack.callback(progress.close)
        redis.wait_until_ready(progress)
        urls = {"HELIXQ_DATABASE_URL": settings.database, "HELIXQ_REDIS_URL": settings.redis}
        yield Servers(database, progress, redis.pid, urls)
