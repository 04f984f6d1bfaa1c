"""Statements on the leases of jobs.

A lease is the right to run the current stage of a job. It is on the job's row: ``worker_id`` and
``lease_expires_at`` are set while it is held, and ``lease_token`` counts the claims (a fencing token).
Each statement is one conditional UPDATE, so that exactly one of several concurrent ones succeeds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

import sqlalchemy as sa

from jobs.database_clock import utcnow
from jobs.models import Attempt, AttemptStatus, Job, Status, Worker
from jobs.pipeline import SAMPLING_PARAMETERS
from jobs.statements import attempts, endings, pauses
from jobs.statements.jobs import IS_LEASED, IS_OPEN_EXPANDED, select_unlocked
from jobs.timing import LEASE


class Lease(NamedTuple):
    """A lease, and who holds it."""

    #: The job's id.
    job: str
    token: int
    #: The index of the stage.
    stage: int
    #: The worker's id.
    worker: str


#: The number of lost attempts at one stage that ends its job as failed.
MAX_LOST = 3
#: The number of lost attempts after which a stage runs exclusively: with no other stage beside it on its
#: worker. So only a stage that itself brings workers down reaches `MAX_LOST`, and not its neighbours.
EXCLUSIVE_AFTER = MAX_LOST - 1

#: The maximum number of leases that one sweep takes back. Databases limit the parameters of a statement.
MAX_EXPIRED = 10_000

#: The condition of leases that ran out.
EXPIRED = sa.and_(IS_LEASED, Job.lease_expires_at < utcnow())

#: The model of ``worker``.
_MODEL = sa.select(Worker.model).where(Worker.id == sa.bindparam("worker")).scalar_subquery()

#: What is needed to run the stage of a lease.
_TO_RUN = (
    Job.lease_token,
    Job.run,
    Job.rounds,
    Job.system,
    Job.question,
    Job.turns,
    *(getattr(Job, name) for name in SAMPLING_PARAMETERS),
    Job.stop,
    Job.ready_at,
    Job.deadline_at,
    Job.traceparent,
    Job.tracestate,
    utcnow().label("now"),
)

#: Parameters: ``job``, ``stage``, ``worker``, ``exclusive``; ``lease`` and ``timeout`` in seconds.
_CLAIM = (
    sa.update(Job)
    .where(
        Job.id == sa.bindparam("job"),
        Job.stage_index == sa.bindparam("stage"),
        IS_OPEN_EXPANDED,
        Job.lease_expires_at.is_(None),
        pauses.IS_NOT_PAUSED_LOCKED,
        # Null, and so not met, if the worker is not registered.
        sa.func.coalesce(Job.model, _MODEL) == _MODEL,
        sa.or_(Job.deadline_at.is_(None), Job.deadline_at > utcnow()),
        sa.or_(
            sa.bindparam("exclusive", type_=sa.Boolean),
            attempts.COUNT_LOST.scalar_subquery() < EXCLUSIVE_AFTER,
        ),
    )
    .values(
        status=Status.IN_PROGRESS,
        lease_token=Job.lease_token + 1,
        lease_expires_at=utcnow(sa.bindparam("lease", type_=sa.Float)),
        worker_id=sa.bindparam("worker"),
        model=sa.func.coalesce(Job.model, _MODEL),
        started_at=sa.func.coalesce(Job.started_at, utcnow()),
        deadline_at=sa.func.coalesce(
            Job.deadline_at, utcnow(sa.bindparam("timeout", type_=sa.Float))
        ),
    )
    .returning(*_TO_RUN)
)

#: The same about the lease that ``worker`` holds on the ``stage`` of a ``job``.
_HELD = sa.select(*_TO_RUN).where(
    Job.id == sa.bindparam("job"),
    Job.stage_index == sa.bindparam("stage"),
    Job.worker_id == sa.bindparam("worker"),
    IS_OPEN_EXPANDED,
)

#: Whether the ``stage`` of a ``job`` is there to be claimed.
_IS_READY = sa.select(
    sa.exists().where(
        Job.id == sa.bindparam("job"),
        Job.stage_index == sa.bindparam("stage"),
        IS_OPEN_EXPANDED,
        Job.lease_expires_at.is_(None),
    )
)

#: The lease ``token`` on the ``stage`` of a ``job`` that ``worker`` holds. The token alone would do, if a database could
#: not be set back: then its next claims repeat tokens that others still know.
_IS_HELD = sa.and_(
    Job.id == sa.bindparam("job"),
    Job.lease_token == sa.bindparam("token"),
    Job.stage_index == sa.bindparam("stage"),
    Job.worker_id == sa.bindparam("worker"),
)

#: Returns a lease on a job that has not ended. Further parameters: new columns.
RELEASE = (
    sa.update(Job)
    .where(
        _IS_HELD,
        IS_OPEN_EXPANDED,
    )
    .values(lease_expires_at=None, worker_id=None, ready_at=utcnow())
)
#: The same as `RELEASE`, and makes the next stage ready.
ADVANCE = RELEASE.values(
    status=Status.IN_PROGRESS, stage_index=Job.stage_index + 1, published_at=utcnow()
)
#: The same as `RELEASE`, and ends the job. ``status`` is a parameter.
END = RELEASE.values(finished_at=utcnow()).returning(*endings.COLUMNS)
#: The same as `END`, after the last stage.
COMPLETE = END.values(stage_index=Job.stage_index + 1)

#: Returns a lease on a job that has ended.
_RELEASE_ENDED = (
    sa.update(Job)
    .where(_IS_HELD, Job.finished_at.is_not(None))
    .values(lease_expires_at=None, worker_id=None)
    .returning(Job.status, Job.error_message)
)


def claim(
    connection: sa.Connection,
    job_id: str,
    stage_index: int,
    worker_id: str,
    *,
    job_timeout: float,
    exclusive: bool,
) -> sa.Row[*tuple[Any, ...]] | None:
    """Take the lease on a job's stage, if it is ready, the worker has the run's model, and the queue is not paused.

    The first claim of a run sets its model; the first claim of a job sets its deadline.

    Args:
        connection: in a transaction that writes.
        job_id: of any job.
        stage_index: of the stage.
        worker_id: of the worker that will run it.
        job_timeout: seconds from the first claim to the deadline.
        exclusive: whether the worker runs nothing else meanwhile. If it does, stages that lost
            `EXCLUSIVE_AFTER` attempts are not claimed.

    Returns:
        what is needed to run the stage; None if there is nothing to claim.
    """
    return connection.execute(
        _CLAIM,
        {
            "job": job_id,
            "stage": stage_index,
            "worker": worker_id,
            "lease": LEASE,
            "timeout": job_timeout,
            "exclusive": exclusive,
        },
    ).one_or_none()


def find_held(
    connection: sa.Connection, job_id: str, stage_index: int, worker_id: str
) -> sa.Row[*tuple[Any, ...]] | None:
    """Return what `claim` returned when a worker took the lease that it holds on a stage; None if it holds none."""
    parameters = {"job": job_id, "stage": stage_index, "worker": worker_id}
    return connection.execute(_HELD, parameters).one_or_none()


def is_ready(connection: sa.Connection, job_id: str, stage_index: int) -> bool:
    """Return whether a job's stage is there to be claimed: by some worker, once the queue is not paused."""
    return bool(connection.scalar(_IS_READY, {"job": job_id, "stage": stage_index}))


def give_back(
    connection: sa.Connection, statement: sa.Update, lease: Lease, values: Mapping[str, object]
) -> bool:
    """Return a lease, and change the job with it.

    Args:
        connection: in a transaction that writes.
        statement: `RELEASE`, `ADVANCE`, `END` or `COMPLETE`.
        lease: the lease.
        values: further columns of the job.

    Returns:
        False if the job has ended or the lease is held no more: then nothing is changed.
    """
    parameters = {**lease._asdict(), **values}
    result = connection.execute(statement, parameters)
    if not result.returns_rows:
        return bool(result.rowcount)
    ended = result.all()
    endings.follow_up(connection, ended)
    return bool(ended)


def give_back_ended(connection: sa.Connection, lease: Lease) -> sa.Row[Status, str | None] | None:
    """Return the lease of a job that has ended, if it is still held.

    Returns:
        the job's status and error message; None if nothing was changed.
    """
    return connection.execute(_RELEASE_ENDED, lease._asdict()).one_or_none()


def extend(connection: sa.Connection, worker_id: str, leases: Collection[tuple[str, int]]) -> None:
    """Extend leases of a worker, given as (job id, lease token).

    A job whose row is locked is left out: should the process that has locked it hang, the other leases do not expire.
    """
    condition = sa.and_(Job.worker_id == worker_id, _is_one_of(leases))
    connection.execute(
        sa.update(Job)
        .where(Job.id.in_(select_unlocked(condition)))
        .values(lease_expires_at=utcnow(LEASE))
    )


def _is_one_of(leases: Collection[tuple[str, int]]) -> sa.ColumnElement[bool]:
    return sa.tuple_(Job.id, Job.lease_token).in_(list(leases))


def held_by(connection: sa.Connection, worker_id: str) -> set[tuple[str, int]]:
    """Return the leases that a worker holds on jobs that have not ended, as (job id, lease token)."""
    rows = connection.execute(
        sa.select(Job.id, Job.lease_token, Job.finished_at).where(Job.worker_id == worker_id)
    )
    return {(row.id, row.lease_token) for row in rows if row.finished_at is None}


def find_expired(connection: sa.Connection) -> list[sa.Row[*tuple[Any, ...]]]:
    """Return ``job_id``, ``lease_token``, ``id`` and ``started_at`` of attempts whose leases have run out.

    There are `MAX_EXPIRED` at most.
    """
    running = sa.and_(
        Attempt.job_id == Job.id,
        Attempt.lease_token == Job.lease_token,
        Attempt.status == AttemptStatus.RUNNING,
    )
    columns = (Attempt.job_id, Attempt.lease_token, Attempt.id, Attempt.started_at)
    found = sa.select(*columns).join(Job, running)
    return list(connection.execute(found.where(EXPIRED).limit(MAX_EXPIRED)))


def take_back_expired(
    connection: sa.Connection, leases: Collection[tuple[str, int]]
) -> list[sa.Row[str, int, int]]:
    """Take back expired leases of jobs that have not ended, and make their stages ready again.

    Args:
        connection: in a transaction that writes.
        leases: those that may be taken back, as (job id, lease token).

    Returns:
        id, stage index and lease token of each job.
    """
    condition = sa.and_(EXPIRED, Job.finished_at.is_(None), _is_one_of(leases))
    return list(
        connection.execute(
            sa.update(Job)
            .where(Job.id.in_(select_unlocked(condition)))
            .values(lease_expires_at=None, worker_id=None, ready_at=utcnow(), published_at=None)
            .returning(Job.id, Job.stage_index, Job.lease_token)
        )
    )


def take_back_expired_of_ended(
    connection: sa.Connection, leases: Collection[tuple[str, int]]
) -> list[sa.Row[str, int, Status]]:
    """Take back expired leases of jobs that have ended.

    Args:
        connection: in a transaction that writes.
        leases: those that may be taken back, as (job id, lease token).

    Returns:
        id, lease token and status of each job.
    """
    condition = sa.and_(EXPIRED, Job.finished_at.is_not(None), _is_one_of(leases))
    return list(
        connection.execute(
            sa.update(Job)
            .where(Job.id.in_(select_unlocked(condition)))
            .values(lease_expires_at=None, worker_id=None)
            .returning(Job.id, Job.lease_token, Job.status)
        )
    )


def restart(
    connection: sa.Connection, job: sa.Row[*tuple[Any, ...]], restarts: list[dict[str, Any]]
) -> bool:
    """Begin a job's next run at its first stage, unless the job was claimed, restarted or ended.

    Args:
        connection: in a transaction that writes.
        job: ``id``, ``run`` and ``lease_token``, as they were read.
        restarts: the job's, with the new one.
    """
    result = connection.execute(
        sa.update(Job)
        .where(
            Job.id == job.id,
            Job.run == job.run,
            Job.lease_token == job.lease_token,
            Job.worker_id.is_(None),
            Job.finished_at.is_(None),
        )
        .values(
            run=Job.run + 1,
            restarts=restarts,
            model=None,
            stage_index=0,
            ready_at=utcnow(),
            published_at=None,
        )
    )
    return bool(result.rowcount)
