"""Every transaction on the tables, and nowhere else.

The database is the truth: a job exists when `submit` has committed, a stage belongs to
whoever's `claim` went through, and its output counts when `record` did. Each of these is
one conditional UPDATE, so that of two who race exactly one succeeds. All times are the
database's.
"""

from __future__ import annotations

from jobs.store.asking import (
    Asking,
    IdempotencyError,
    JobNotFoundError,
    NewJob,
    QueueFullError,
    Standing,
    new_id,
)
from jobs.store.publishing import Publishing, Unpublished
from jobs.store.restarting import Restarting
from jobs.store.running import LEASE, Claim, Output, Running
from jobs.store.sweeping import PAST_DEADLINE, SWEEP_INTERVAL, Sweeping, Swept
from jobs.store.workers import HEARTBEAT_INTERVAL, WORKER_STALE, Runtime, Serving, Workers

__all__ = [
    "HEARTBEAT_INTERVAL",
    "LEASE",
    "PAST_DEADLINE",
    "SWEEP_INTERVAL",
    "WORKER_STALE",
    "Claim",
    "IdempotencyError",
    "JobNotFoundError",
    "NewJob",
    "Output",
    "QueueFullError",
    "Runtime",
    "Serving",
    "Standing",
    "Store",
    "Swept",
    "Unpublished",
    "new_id",
]


class Store(Asking, Running, Workers, Publishing, Sweeping, Restarting):
    """The tables of one database. Threads may share it; forks may not."""
