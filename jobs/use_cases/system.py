"""What runs and what waits, for those who operate a service."""

from __future__ import annotations

import datetime as dt
from collections import Counter
from dataclasses import dataclass

from jobs.database import Database
from jobs.models import (
    AttemptStatus,
    Pause,
    WebhookDelivery,
    WebhookEndpoint,
    Worker,
    WorkerState,
)
from jobs.pipeline import MAX_ROUNDS, Role, stages
from jobs.statements import clock, in_queue, log, pauses, system, workers
from jobs.statements.in_queue import CAP
from jobs.timing import ALIVE_FOR

__all__ = [
    "CAP",
    "ROLES",
    "RunningWorker",
    "Summary",
    "System",
    "describe",
    "list_failed",
    "list_gone",
    "state_of",
    "summarize",
]

#: How many owners are named: those with the most open jobs.
MAX_OWNERS = 20
#: How many workers that are gone are named, and how many deliveries that failed.
MAX_GONE = 20
MAX_FAILED = 20
#: How many pauses of the queue are named.
MAX_PAUSES = 10
#: The role of each stage of a job.
ROLES = [stage.role for stage in stages(MAX_ROUNDS)]


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
    """What runs and what waits. No number counts further than `jobs.statements.in_queue.CAP`."""

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
    #: The last pauses of the queue, the newest first.
    pauses: list[Pause]


@dataclass(frozen=True)
class Summary:
    """The key facts about a service."""

    #: The workers that are ready, up to `jobs.statements.system.MAX_WORKERS`, and the names of their base models.
    ready: int
    models: list[str]
    #: The jobs that wait for their first stage, up to `CAP`.
    queued: int
    #: Since when the queue is paused.
    paused_at: dt.datetime | None = None


def summarize(database: Database) -> Summary:
    """Return the key facts. It costs three short queries."""
    with database.read() as connection:
        runtimes = workers.ready_runtimes(connection, system.MAX_WORKERS)
        queued = in_queue.count(connection)
        paused_at = pauses.paused_at(connection)
    names = {runtime.get("base", {}).get("name") for runtime in runtimes}
    return Summary(len(runtimes), sorted(filter(None, names)), queued, paused_at)


def list_gone(database: Database) -> list[Worker]:
    """Return the last `MAX_GONE` workers that stopped, or were not seen for long; the last seen first."""
    with database.read_session() as session:
        running = {worker.id for worker in system.list_workers(session)}
        found = system.list_last_seen(session, len(running) + MAX_GONE)
        return [worker for worker in found if worker.id not in running]


def list_failed(
    database: Database, owner: str | None
) -> list[tuple[WebhookDelivery, WebhookEndpoint]]:
    """Return the last `MAX_FAILED` webhooks of an owner (None: of all) that were given up, the newest first."""
    with database.read_session() as session:
        return system.list_failed_deliveries(session, owner, MAX_FAILED)


def describe(database: Database) -> System:
    """Return what runs and what waits. It costs the same however long the history and the queue are."""
    with database.read_session() as session:
        connection = session.connection()
        now = clock.now(connection)
        runs = system.count_running(connection)
        running_workers = [
            RunningWorker(worker, state_of(worker, now), runs.get(worker.id, 0))
            for worker in system.list_workers(session)
        ]
        queued, begun = Counter(in_queue.count_by_owner(connection)), Counter[str]()
        running, waiting = dict.fromkeys(Role, 0), dict.fromkeys(Role, 0)
        for owner, stage_index, is_running, number in system.count_in_progress(connection):
            (running if is_running else waiting)[ROLES[stage_index]] += number
            begun[owner] += number
        most = (queued + begun).most_common(MAX_OWNERS)
        origin, size = log.state(connection)
        return System(
            now=now,
            workers=running_workers,
            queued=queued.total(),
            oldest_queued_at=in_queue.oldest(connection),
            running=running,
            waiting=waiting,
            owners={owner: (queued[owner], begun[owner]) for owner, _ in most},
            attempts=system.count_last_attempts(connection),
            deliveries=system.count_pending_deliveries(connection),
            log_origin=origin,
            log_size=size,
            unsealed=log.count_unsealed(connection, CAP),
            checkpoint_at=system.last_checkpoint(connection),
            pauses=pauses.newest(session, MAX_PAUSES),
        )


def state_of(worker: Worker, now: dt.datetime) -> str:
    """Return the state of a worker that has not stopped; see `RunningWorker.state`."""
    is_lost = worker.state is WorkerState.READY and now - worker.seen_at > dt.timedelta(
        seconds=ALIVE_FOR
    )
    return "lost" if is_lost else worker.state.value
