"""What runs and what waits, for those who operate a service."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from dataclasses import dataclass

from jobs.column_types import utcnow
from jobs.database import Database
from jobs.models import AttemptStatus, Worker, WorkerState
from jobs.pipeline import MAX_ROUNDS, Role, stages
from jobs.statements import log, system
from jobs.statements.jobs import CAP
from jobs.timing import ALIVE_FOR

#: How many owners are named: those with the most open jobs.
MAX_OWNERS = 20


@dataclass(frozen=True)
class RunningWorker:
    """A worker that has not stopped."""

    worker: Worker
    #: ``loading``, ``ready``, or ``lost``: its heartbeats have ceased.
    state: str
    #: The stages that it runs.
    running: int


@dataclass(frozen=True)
class System:
    """What runs and what waits. No number counts further than `jobs.statements.jobs.CAP`."""

    now: dt.datetime
    workers: list[RunningWorker]
    #: Jobs that wait for their first stage, and when the oldest of them was accepted.
    queued: int
    oldest_queued_at: dt.datetime | None
    #: Stages of jobs that have begun, by role.
    running: dict[Role, int]
    waiting: dict[Role, int]
    #: The open jobs of each owner: those that wait for their first stage, and those that have begun.
    owners: dict[str, tuple[int, int]]
    #: The statuses of the last attempts.
    attempts: dict[AttemptStatus, int]
    deliveries: int
    log_origin: str | None
    log_size: int
    unsealed: int
    checkpoint_at: dt.datetime | None


def describe(database: Database) -> System:
    """Return what runs and what waits. It costs the same however long the history and the queue are."""
    with database.read_session() as session:
        connection = session.connection()
        now = connection.scalar(utcnow().select())
        assert now is not None  # noqa: S101 (a time is never null)
        runs = system.count_running(connection)
        workers = [
            RunningWorker(worker, _state(worker, now), runs.get(worker.id, 0))
            for worker in system.list_workers(session)
        ]
        queued, begun = Counter(system.count_queued(connection)), Counter[str]()
        running, waiting = dict.fromkeys(Role, 0), dict.fromkeys(Role, 0)
        roles = [stage.role for stage in stages(MAX_ROUNDS)]
        for owner, stage_index, is_running, number in system.count_in_progress(connection):
            (running if is_running else waiting)[roles[stage_index]] += number
            begun[owner] += number
        most = (queued + begun).most_common(MAX_OWNERS)
        origin, size = log.state(connection)
        return System(
            now,
            workers,
            queued.total(),
            system.oldest_queued(connection),
            running,
            waiting,
            {owner: (queued[owner], begun[owner]) for owner, _ in most},
            system.count_last_attempts(connection),
            system.count_pending_deliveries(connection),
            origin,
            size,
            log.count_unsealed(connection, CAP),
            system.last_checkpoint(connection),
        )


def _state(worker: Worker, now: dt.datetime) -> str:
    is_lost = worker.state is WorkerState.READY and now - worker.seen_at > dt.timedelta(
        seconds=ALIVE_FOR
    )
    return "lost" if is_lost else worker.state.value
