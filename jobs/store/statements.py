"""What every stage asks of the database, built once: to build a statement takes longer than to run it."""

from __future__ import annotations

import sqlalchemy as sa

from jobs.db import utcnow
from jobs.models import OPEN, Attempt, AttemptStatus, Job, Status, Worker

#: A job that has not ended. Not ``in``: SQLAlchemy writes its list anew for each execution.
_OPEN = sa.or_(*(Job.status == status for status in OPEN))

#: Counts a stage's attempts that ended with their worker lost. Parameters: ``job``, ``stage``.
LOST = sa.select(sa.func.count()).where(
    Attempt.job_id == sa.bindparam("job"),
    Attempt.stage_index == sa.bindparam("stage"),
    Attempt.status == AttemptStatus.LOST,
)

#: The model of ``worker``.
_MODEL = sa.select(Worker.model).where(Worker.id == sa.bindparam("worker")).scalar_subquery()

#: Takes the lease on a stage, if it is there to be run, and settles the job's model with the first.
#: Parameters: ``job``, ``stage``, ``worker``;
#: ``lease`` and ``timeout`` in seconds; ``alone``, or else fewer than ``suspicious`` workers were lost.
CLAIM = (
    sa.update(Job)
    .where(
        Job.id == sa.bindparam("job"),
        Job.stage_index == sa.bindparam("stage"),
        _OPEN,
        Job.lease_expires_at.is_(None),
        sa.or_(Job.model.is_(None), Job.model == _MODEL),
        sa.or_(Job.deadline_at.is_(None), Job.deadline_at > utcnow()),
        sa.or_(
            sa.bindparam("alone", type_=sa.Boolean),
            LOST.scalar_subquery() < sa.bindparam("suspicious"),
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
    .returning(
        Job.lease_token,
        Job.run,
        Job.rounds,
        Job.system,
        Job.question,
        Job.temperature,
        Job.top_k,
        Job.top_p,
        Job.max_output_tokens,
        Job.seed,
        Job.ready_at,
        Job.deadline_at,
        utcnow().label("now"),
    )
)

#: All attempts of ``job`` so far, by stage_index.
ATTEMPTS = (
    sa.select(Attempt.run, Attempt.stage_index, Attempt.status, Attempt.output)
    .where(Attempt.job_id == sa.bindparam("job"))
    .order_by(Attempt.stage_index)
)

#: What of ``job`` changes whenever its stages do.
STANDING = sa.select(Job.status, Job.run, Job.stage_index, Job.lease_token).where(
    Job.id == sa.bindparam("job")
)

#: When ``job`` ended; null if it has not.
_ENDED = sa.select(Job.finished_at).where(Job.id == sa.bindparam("job")).scalar_subquery()

#: The partial indexes' conditions, in their words: SQLite uses one only then, and knows no parameter's
#: value when it chooses.
IS_QUEUED = Job.status == sa.literal_column("'queued'")
IS_IN_PROGRESS = Job.status == sa.literal_column("'in_progress'")
IS_OPEN = Job.status.in_([sa.literal_column("'queued'"), sa.literal_column("'in_progress'")])
IS_LEASED = Job.worker_id.is_not(None)

#: Adds an attempt. Parameters: its columns.
BEGIN_ATTEMPT = sa.insert(Attempt).returning(Attempt.id)

_END_ATTEMPT = sa.update(Attempt).where(
    Attempt.job_id == sa.bindparam("job"),
    Attempt.lease_token == sa.bindparam("token"),
    Attempt.status == AttemptStatus.RUNNING,
)
#: Ends the attempt that runs as ``job``'s under ``token``: with the job, if it ends by this. Further
#: parameters: its new columns.
END_ATTEMPT = _END_ATTEMPT.values(finished_at=sa.func.coalesce(_ENDED, utcnow()))
#: The same for a job that ended before.
END_STOPPED = _END_ATTEMPT.values(finished_at=utcnow())

#: Hands the lease of ``job`` back, if it is still that of ``token`` and the job has not ended. Further
#: parameters: new columns.
SETTLE = (
    sa.update(Job)
    .where(
        Job.id == sa.bindparam("job"),
        Job.lease_token == sa.bindparam("token"),
        IS_LEASED,
        _OPEN,
    )
    .values(lease_expires_at=None, worker_id=None, ready_at=utcnow())
)
#: The same for a stage that is finished, with others to come.
GO_ON = SETTLE.values(
    status=Status.IN_PROGRESS, stage_index=Job.stage_index + 1, published_at=utcnow()
)
#: The same at the end of a job; its ``status`` is a parameter.
END = SETTLE.values(finished_at=utcnow())
#: The same for the last stage.
COMPLETE = END.values(stage_index=Job.stage_index + 1)

#: Hands the lease of a ``job`` that has ended back, if it is still that of ``token``.
LET_GO = (
    sa.update(Job)
    .where(
        Job.id == sa.bindparam("job"),
        Job.lease_token == sa.bindparam("token"),
        IS_LEASED,
        Job.finished_at.is_not(None),
    )
    .values(lease_expires_at=None, worker_id=None)
    .returning(Job.status, Job.error_message)
)


def free(which: sa.ColumnElement[bool]) -> sa.Select[str]:
    """Choose jobs, but for those that another sweep is at just now (PostgreSQL)."""
    return sa.select(Job.id).where(which).with_for_update(skip_locked=True)


def end_attempt(
    connection: sa.Connection, job_id: str, token: int, status: AttemptStatus, **values: object
) -> None:
    """End the attempt that runs as a job's under a token, after its lease was handed back."""
    parameters = {"job": job_id, "token": token, "status": status, **values}
    connection.execute(END_ATTEMPT, parameters)


def end_stopped(
    connection: sa.Connection, job_id: str, token: int, status: Status, **values: object
) -> None:
    """End an attempt whose job had ended before, as ``status``, after its lease was handed back."""
    ended = AttemptStatus.CANCELLED if status is Status.CANCELLED else AttemptStatus.FAILED
    parameters = {"job": job_id, "token": token, "status": ended, **values}
    connection.execute(END_STOPPED, parameters)
