"""Every transaction on the tables, and nowhere else.

The database is the truth: a job exists when `submit` has committed, a stage belongs to
whoever's `claim` went through, and its output counts when `record` did. Each of these is
one conditional UPDATE, so that of two who race exactly one succeeds. All times are the
database's.
"""

from __future__ import annotations

import datetime as dt
import hashlib
import re
import secrets
import time
import zlib
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, selectinload

from jobs import db, pipeline, statements
from jobs.db import utcnow
from jobs.models import (
    OPEN,
    Attempt,
    AttemptStatus,
    Job,
    Status,
    Tokenizer,
    Worker,
    WorkerState,
)
from jobs.pipeline import Sampling, Stage

#: Seconds a claim holds without a heartbeat. With the sweep every `SWEEP_INTERVAL` seconds
#: a crashed worker's stages are back well within the promised 30.
LEASE = 15.0
HEARTBEAT_INTERVAL = 5.0
SWEEP_INTERVAL = 5.0
#: A worker not seen for this many seconds is not counted as alive.
WORKER_STALE = 20.0
#: Attempts at one stage that may end with their worker lost before the job fails.
MAX_LOST = 3
#: Lost attempts after which a stage is run with no other beside it on its worker: so only the
#: stage that brings workers down gets to `MAX_LOST`, and not those that happened to be there too.
SUSPICIOUS = MAX_LOST - 1
#: Seconds between a commit and the sweep's own publishing: time for the web's, or for the chain's.
PUBLISH_GRACE = 2.0
#: Seconds past its deadline after which a job is ended whoever holds its lease.
DEADLINE_GRACE = 30.0
#: Seconds after which a message is sent again although it may well be in the queue.
DOUBT_AFTER = 300.0
PAST_DEADLINE = "the job ran past its deadline (HELIXQ_JOB_TIMEOUT)"
#: Seconds a ready stage may wait in Redis before the sweep suspects that its message is gone.
REPUBLISH_AFTER = 10.0


class JobNotFoundError(Exception):
    """There is no job with this id."""


class QueueFullError(Exception):
    """As many jobs as `HELIXQ_MAX_QUEUED` allows are waiting already."""


class IdempotencyError(Exception):
    """The idempotency key was used before, with another request."""


@dataclass(frozen=True)
class NewJob:
    """A question as it was accepted."""

    question: str
    system: str
    sampling: Sampling
    rounds: int
    priority: int
    background: bool
    labels: dict[str, str]
    idempotency_key: str | None = None
    request_digest: str | None = None


@dataclass(frozen=True)
class Claim:
    """The right to run one stage of one job, until the lease runs out."""

    job_id: str
    attempt_id: int
    lease_token: int
    stage: Stage
    last: bool
    prompt: str
    sampling: Sampling
    #: The database's time at the claim.
    started_at: dt.datetime
    #: Seconds from then to the job's deadline.
    seconds_left: float


@dataclass(frozen=True)
class Output:
    """What a stage gave."""

    text: str
    deltas: list[int]
    #: Unknown of a generation that raised an error.
    prompt_tokens: int | None
    output_tokens: int | None
    #: ``stop``, ``length``, ``cancelled``, ``deadline`` or ``error``.
    finish_reason: str
    #: The token limit that applied.
    max_output_tokens: int
    #: Seconds from the claim to the first token, by the worker's monotonic clock.
    first_token_after: float | None


@dataclass(frozen=True)
class Runtime:
    """What a worker serves, as it is kept with everything it did."""

    description: dict[str, Any]
    context: int
    #: The text of ``tokenizer.json``.
    tokenizer: str


@dataclass(frozen=True)
class Swept:
    """What a sweep found."""

    #: Jobs taken back from workers that stopped answering.
    rescued: list[str]
    #: Jobs that ended because of it: three workers lost, or the deadline passed.
    failed: list[str]


@dataclass(frozen=True)
class Unpublished:
    """A job whose next stage waits without a message in Redis."""

    job_id: str
    position: int
    rounds: int
    priority: int


@dataclass(frozen=True)
class Serving:
    """The model that the newest worker serves."""

    context: int
    tokenizer_digest: str


def new_id() -> str:
    """Make a job id: 48 bits of time, so that ids sort by age, and 80 random bits."""
    return f"resp_{time.time_ns() // 1_000_000:012x}{secrets.token_hex(10)}"


def _check_id(job_id: str) -> None:
    """Refuse what no job's id can be, before a database stumbles over it."""
    if not re.fullmatch(r"resp_[0-9a-z]{1,32}", job_id):
        raise JobNotFoundError(job_id)


class Store:
    """The tables of one database. Threads may share it; forks may not."""

    def __init__(self, url: str) -> None:
        self.engine = db.connect(url)
        self._reader = self.engine
        if self.engine.dialect.name == "postgresql":
            # A job and its attempts are read by two queries, which must see the same moment.
            self._reader = self.engine.execution_options(isolation_level="REPEATABLE READ")
        self._writer = self.engine.execution_options(helixq_write=True)

    @contextmanager
    def _read(self) -> Iterator[Session]:
        with Session(self._reader, expire_on_commit=False) as session, session.begin():
            yield session

    def _read_rows(self) -> AbstractContextManager[sa.Connection]:
        return self._reader.begin()

    def _write(self) -> AbstractContextManager[sa.Connection]:
        # Rows and not objects: a worker's threads share one interpreter with its engine.
        return self._writer.begin()

    @contextmanager
    def _add(self) -> Iterator[Session]:
        with Session(self._writer, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        self.engine.dispose()

    def ping(self) -> None:
        """Ask the database for a sign of life; raises what SQLAlchemy raises."""
        with self._read_rows() as connection:
            connection.execute(sa.select(sa.literal(1)))

    # --- asking -----------------------------------------------------------------------

    def submit(self, new: NewJob, *, max_queued: int) -> tuple[Job, bool]:
        """Accept a job: when this returns, it is kept.

        Returns:
            The job, and whether it is new: with an idempotency key that was used for the
            same request before, it is the earlier job as it stands now.

        Raises:
            QueueFullError: ``max_queued`` jobs are waiting.
            IdempotencyError: the key was used for another request.
        """
        try:
            with self._add() as session:
                if earlier := self._earlier(session, new):
                    return earlier, False
                waiting = session.scalar(
                    sa.select(sa.func.count()).where(_IS_OPEN, Job.status == Status.QUEUED)
                )
                if (waiting or 0) >= max_queued:
                    raise QueueFullError
                job = Job(
                    id=new_id(),
                    question=new.question,
                    system=new.system,
                    temperature=new.sampling.temperature,
                    top_k=new.sampling.top_k,
                    top_p=new.sampling.top_p,
                    max_output_tokens=new.sampling.max_output_tokens,
                    seed=new.sampling.seed,
                    rounds=new.rounds,
                    priority=new.priority,
                    background=new.background,
                    labels=new.labels,
                    idempotency_key=new.idempotency_key,
                    request_digest=new.request_digest,
                    attempts=[],
                )
                session.add(job)
            return job, True
        except sa.exc.IntegrityError:
            # PostgreSQL: the same key was committed between our look and our insert.
            with self._read() as session:
                if earlier := self._earlier(session, new):
                    return earlier, False
            raise

    @staticmethod
    def _earlier(session: Session, new: NewJob) -> Job | None:
        if new.idempotency_key is None:
            return None
        job = session.scalar(
            sa.select(Job)
            .where(Job.idempotency_key == new.idempotency_key)
            .options(selectinload(Job.attempts))
        )
        if job is not None and job.request_digest != new.request_digest:
            raise IdempotencyError
        return job

    def mark_published(self, job_id: str, position: int) -> None:
        """Note that messages from ``position`` on are in Redis."""
        with self._write() as connection:
            connection.execute(
                sa.update(Job)
                .where(Job.id == job_id, Job.position == position, Job.status.in_(OPEN))
                .values(published_at=utcnow())
            )

    def unpublish(self, job_id: str, position: int) -> None:
        """Note that the message for ``position`` was thrown away: the sweep sends another."""
        with self._write() as connection:
            connection.execute(
                sa.update(Job)
                .where(Job.id == job_id, Job.position == position, Job.lease_expires_at.is_(None))
                .values(published_at=None)
            )

    def job(self, job_id: str) -> Job:
        """Read a job with all its attempts and the workers that ran them.

        Raises:
            JobNotFoundError: there is none with this id.
        """
        _check_id(job_id)
        with self._read() as session:
            job = session.get(
                Job, job_id, options=[selectinload(Job.attempts).selectinload(Attempt.worker)]
            )
            if job is None:
                raise JobNotFoundError(job_id)
            return job

    def page(
        self,
        *,
        limit: int,
        after: str | None = None,
        newest_first: bool = True,
        attempts: bool = False,
    ) -> tuple[list[Job], bool]:
        """Read a page of jobs by age, and whether more follow.

        Args:
            limit: the most jobs to return.
            after: the id of the last job of the page before.
            newest_first: the order.
            attempts: whether to load the attempts too.

        Raises:
            JobNotFoundError: ``after`` is no job's id.
        """
        key = sa.tuple_(Job.created_at, Job.id)
        query = sa.select(Job).order_by(
            *((c.desc() if newest_first else c.asc()) for c in (Job.created_at, Job.id))
        )
        if attempts:
            query = query.options(selectinload(Job.attempts))
        with self._read() as session:
            if after is not None:
                _check_id(after)
                last = session.get(Job, after)
                if last is None:
                    raise JobNotFoundError(after)
                cursor = sa.tuple_(
                    sa.literal(last.created_at, db.UTCDateTime()), sa.literal(last.id)
                )
                query = query.where(key < cursor if newest_first else key > cursor)
            jobs = list(session.scalars(query.limit(limit + 1)))
        return jobs[:limit], len(jobs) > limit

    def cancel(self, job_id: str) -> Job:
        """End a job that has not ended; one that has stays as it is.

        Whoever runs its stage loses the lease with this commit and stops within a second.

        Raises:
            JobNotFoundError: there is none with this id.
        """
        _check_id(job_id)
        with self._write() as connection:
            token = connection.execute(
                sa.update(Job)
                .where(Job.id == job_id, Job.status.in_(OPEN))
                .values(
                    status=Status.CANCELLED,
                    finished_at=utcnow(),
                    lease_expires_at=None,
                    worker_id=None,
                )
                .returning(Job.lease_token)
            ).scalar()
            if token is not None:
                _end_attempt(connection, job_id, token, AttemptStatus.CANCELLED)
        return self.job(job_id)

    # --- running ----------------------------------------------------------------------

    def claim(
        self,
        job_id: str,
        position: int,
        worker_id: str,
        *,
        job_timeout: float,
        alone: bool = False,
    ) -> Claim | None:
        """Take the lease on a stage, or nothing if it is not there to be run.

        A duplicate or outdated message finds nothing to claim.

        Args:
            job_id, position: the stage.
            worker_id: who will run it.
            job_timeout: seconds that the job may take, if this is its first claim.
            alone: whether the worker runs nothing else meanwhile; if it does, stages that lost
                `SUSPICIOUS` workers are not given to it.
        """
        with self._write() as connection:
            job = connection.execute(
                statements.CLAIM,
                {
                    "job": job_id,
                    "stage": position,
                    "worker": worker_id,
                    "lease": LEASE,
                    "timeout": job_timeout,
                    "alone": alone,
                    "suspicious": SUSPICIOUS,
                },
            ).one_or_none()
            if job is None:
                return None
            attempts = connection.execute(statements.ATTEMPTS, {"job": job_id}).all()
            outputs = [a.output or "" for a in attempts if a.status is AttemptStatus.FINISHED]
            chain = pipeline.stages(job.rounds)
            stage = chain[position]
            sampling = Sampling(
                temperature=job.temperature,
                top_k=job.top_k,
                top_p=job.top_p,
                max_output_tokens=job.max_output_tokens,
                seed=pipeline.stage_seed(job.seed, position),
            )
            prompt = pipeline.prompt(stage, job.system, job.question, outputs)
            attempt_id = connection.execute(
                statements.BEGIN_ATTEMPT,
                {
                    "job_id": job_id,
                    "position": position,
                    "role": stage.role,
                    "round": stage.round,
                    "number": 1 + sum(a.position == position for a in attempts),
                    "lease_token": job.lease_token,
                    "worker_id": worker_id,
                    "status": AttemptStatus.RUNNING,
                    "prompt": prompt,
                    "temperature": sampling.temperature,
                    "top_k": sampling.top_k,
                    "top_p": sampling.top_p,
                    "max_output_tokens": sampling.max_output_tokens,
                    "seed": sampling.seed,
                    "queued_at": job.ready_at,
                    "started_at": job.now,
                },
            ).scalar_one()
            return Claim(
                job_id=job_id,
                attempt_id=attempt_id,
                lease_token=job.lease_token,
                stage=stage,
                last=position == len(chain) - 1,
                prompt=prompt,
                sampling=sampling,
                started_at=job.now,
                seconds_left=(job.deadline_at - job.now).total_seconds(),
            )

    def suspicious(self, job_id: str, position: int) -> bool:
        """Whether a stage has lost so many workers that it should run alone."""
        with self._read_rows() as connection:
            lost = connection.scalar(statements.LOST, {"job": job_id, "stage": position})
        return (lost or 0) >= SUSPICIOUS

    def record(self, claim: Claim, output: Output) -> bool:
        """Keep a stage's output and make the next stage ready, or end the job.

        Returns:
            False if the lease was lost meanwhile: then nothing is recorded.
        """
        with self._write() as connection:
            if claim.last:
                cut = output.finish_reason == "length"
                status = Status.INCOMPLETE if cut else Status.COMPLETED
                held = _settle(connection, claim, statements.COMPLETE, status=status)
            else:
                held = _settle(connection, claim, statements.GO_ON)
            if held:
                _end_attempt(
                    connection,
                    claim.job_id,
                    claim.lease_token,
                    AttemptStatus.FINISHED,
                    **_columns(claim, output),
                )
            return held

    def fail(self, claim: Claim, code: str, message: str, output: Output | None = None) -> bool:
        """End a job whose stage cannot be finished, with the reason and the text so far.

        Returns:
            False if the lease was lost meanwhile: then nothing is recorded.
        """
        with self._write() as connection:
            held = _settle(
                connection,
                claim,
                statements.END,
                status=Status.FAILED,
                error_code=code,
                error_message=message,
            )
            if held:
                columns = _columns(claim, output) if output else {}
                _end_attempt(
                    connection,
                    claim.job_id,
                    claim.lease_token,
                    AttemptStatus.FAILED,
                    error=message,
                    **columns,
                )
            return held

    def release(self, claim: Claim, reason: str) -> bool:
        """Give a claimed stage back, to be run again by whoever comes first.

        Returns:
            False if the lease was lost meanwhile.
        """
        with self._write() as connection:
            held = _settle(connection, claim, statements.SETTLE, published_at=None)
            if held:
                _end_attempt(
                    connection,
                    claim.job_id,
                    claim.lease_token,
                    AttemptStatus.RELEASED,
                    error=reason,
                )
            return held

    def keep_partial(self, claim: Claim, output: Output) -> None:
        """Add to a cancelled attempt what had been generated when the worker noticed."""
        with self._write() as connection:
            connection.execute(
                sa.update(Attempt)
                .where(
                    Attempt.id == claim.attempt_id,
                    Attempt.status == AttemptStatus.CANCELLED,
                    Attempt.output.is_(None),
                )
                .values(finished_at=utcnow(), **_columns(claim, output))
            )

    # --- workers ----------------------------------------------------------------------

    def register(self, worker_id: str, host: str, pid: int, runtime: Runtime) -> None:
        """Note that a worker starts, what it will serve, and the tokenizer it uses."""
        digest = hashlib.sha256(runtime.tokenizer.encode()).hexdigest()
        try:
            with self._add() as session:
                if session.get(Tokenizer, digest) is None:
                    body = zlib.compress(runtime.tokenizer.encode())
                    session.add(Tokenizer(digest=digest, body=body))
        except sa.exc.IntegrityError:
            pass  # another worker with the same tokenizer starts at the same moment
        with self._add() as session:
            session.add(
                Worker(
                    id=worker_id,
                    host=host,
                    pid=pid,
                    state=WorkerState.LOADING,
                    runtime=runtime.description,
                    context=runtime.context,
                    tokenizer_digest=digest,
                )
            )

    def set_worker_state(self, worker_id: str, state: WorkerState) -> None:
        stopped = utcnow() if state is WorkerState.STOPPED else None
        with self._write() as connection:
            connection.execute(
                sa.update(Worker)
                .where(Worker.id == worker_id)
                .values(state=state, seen_at=utcnow(), stopped_at=stopped)
            )

    def heartbeat(self, worker_id: str, running: Collection[tuple[str, int]]) -> None:
        """Say that a worker is alive, and extend its leases on what it is running.

        Args:
            worker_id: whose.
            running: (job id, lease token) of the stages that its threads are busy with. A
                lease that no thread knows of, as after a claim whose answer was lost, runs out.
        """
        with self._write() as connection:
            connection.execute(
                sa.update(Worker).where(Worker.id == worker_id).values(seen_at=utcnow())
            )
            connection.execute(
                sa.update(Job)
                .where(
                    Job.worker_id == worker_id,
                    Job.lease_expires_at.is_not(None),
                    sa.tuple_(Job.id, Job.lease_token).in_(list(running)),
                )
                .values(lease_expires_at=utcnow(LEASE))
            )

    def held(self, worker_id: str) -> set[tuple[str, int]]:
        """Return the (job id, lease token) pairs a worker still holds: the rest it must stop."""
        with self._read_rows() as connection:
            rows = connection.execute(
                sa.select(Job.id, Job.lease_token).where(
                    Job.worker_id == worker_id, Job.lease_expires_at.is_not(None)
                )
            )
            return {(row.id, row.lease_token) for row in rows}

    def ready_workers(self) -> list[Worker]:
        """Return the workers that are ready and were seen lately."""
        with self._read() as session:
            return list(
                session.scalars(
                    sa.select(Worker).where(
                        Worker.state == WorkerState.READY, Worker.seen_at > utcnow(-WORKER_STALE)
                    )
                )
            )

    def worker_of_process(self, host: str, pid: int) -> Worker | None:
        """Return the worker that a process registered, if it has come so far."""
        with self._read() as session:
            return session.scalar(
                sa.select(Worker)
                .where(Worker.host == host, Worker.pid == pid, Worker.stopped_at.is_(None))
                .order_by(Worker.started_at.desc())
                .limit(1)
            )

    def serving(self) -> Serving | None:
        """Return what the newest worker serves that has not stopped, or else the newest of all.

        None before the first one ever started.
        """
        with self._read_rows() as connection:
            row = connection.execute(
                sa.select(Worker.context, Worker.tokenizer_digest)
                # One that stopped, perhaps because its model did not load, counts last.
                .order_by(Worker.state == WorkerState.STOPPED, Worker.started_at.desc())
                .limit(1)
            ).first()
            return Serving(*row) if row else None

    def tokenizer(self, digest: str) -> str:
        """Return the text of a registered ``tokenizer.json``."""
        with self._read() as session:
            return zlib.decompress(session.get_one(Tokenizer, digest).body).decode()

    # --- the sweep --------------------------------------------------------------------

    def busy(self) -> bool:
        """Whether any job has not ended: nothing else can need a sweep."""
        with self._read_rows() as connection:
            return bool(connection.scalar(sa.select(sa.exists().where(_IS_OPEN))))

    def sweep(self) -> Swept:
        """Take back the stages of workers that stopped answering, and end what must end."""
        overdue = sa.or_(
            sa.and_(Job.lease_expires_at.is_(None), Job.deadline_at < utcnow()),
            # Whoever holds the lease should have ended it long ago.
            Job.deadline_at < utcnow(-DEADLINE_GRACE),
        )
        with self._read_rows() as connection:  # nothing to do is the rule, and should lock nothing
            if not connection.scalar(
                sa.select(
                    sa.exists().where(
                        _IS_OPEN,
                        Job.status == Status.IN_PROGRESS,
                        sa.or_(Job.lease_expires_at < utcnow(), overdue),
                    )
                )
            ):
                return Swept(rescued=[], failed=[])
        with self._write() as connection:
            expired = connection.execute(
                sa.update(Job)
                .where(_IS_OPEN, Job.status == Status.IN_PROGRESS, Job.lease_expires_at < utcnow())
                .values(lease_expires_at=None, worker_id=None, ready_at=utcnow(), published_at=None)
                .returning(Job.id, Job.position, Job.lease_token)
            ).all()
            failed: list[str] = []
            for job_id, position, token in expired:
                message = "the worker that ran this attempt stopped answering"
                _end_attempt(connection, job_id, token, AttemptStatus.LOST, error=message)
                lost = connection.scalar(statements.LOST, {"job": job_id, "stage": position})
                if (lost or 0) >= MAX_LOST:
                    connection.execute(
                        sa.update(Job)
                        .where(Job.id == job_id)
                        .values(
                            status=Status.FAILED,
                            finished_at=utcnow(),
                            error_code="worker_lost",
                            error_message=f"{lost} workers were lost while they ran its stage "
                            f"{position} ({pipeline.stages(pipeline.MAX_ROUNDS)[position].role})",
                        )
                    )
                    failed.append(job_id)
            late = connection.execute(
                sa.update(Job)
                .where(_IS_OPEN, Job.status == Status.IN_PROGRESS, overdue)
                .values(
                    status=Status.FAILED,
                    finished_at=utcnow(),
                    lease_expires_at=None,
                    worker_id=None,
                    error_code="deadline_exceeded",
                    error_message=PAST_DEADLINE,
                )
                .returning(Job.id, Job.lease_token)
            ).all()
            for job_id, token in late:
                _end_attempt(connection, job_id, token, AttemptStatus.FAILED, error=PAST_DEADLINE)
                failed.append(job_id)
            return Swept(rescued=[row.id for row in expired], failed=failed)

    def unpublished(self, *, queue_empty: bool, limit: int = 1000) -> list[Unpublished]:
        """Find jobs whose next stage waits without a message that will run it.

        That is: never published, given back or rescued; or half done and not continued,
        although later stages go first; or overtaken by a question that came later; or still
        waiting although Redis has no messages, or for so long that nobody can tell. A message
        too many does no harm.
        """
        with self._read_rows() as connection:
            suspect: sa.ColumnElement[bool] = sa.true()
            if not queue_empty:
                suspect = sa.or_(
                    Job.position > 0,
                    Job.published_at < utcnow(-DOUBT_AFTER),
                    *_overtaken(connection),
                )
            rows = connection.execute(
                sa.select(Job.id, Job.position, Job.rounds, Job.priority)
                .where(
                    _IS_OPEN,
                    Job.lease_expires_at.is_(None),
                    Job.ready_at < utcnow(-PUBLISH_GRACE),
                    sa.or_(
                        Job.published_at.is_(None),
                        sa.and_(Job.published_at < utcnow(-REPUBLISH_AFTER), suspect),
                    ),
                )
                .order_by(Job.position.desc(), Job.priority.desc(), Job.created_at)
                .limit(limit)
            )
            return [Unpublished(*row) for row in rows]

    def delete_older(self, days: int) -> int:
        """Delete jobs that ended more than ``days`` days ago; return how many."""
        with self._write() as connection:
            result = connection.execute(
                sa.delete(Job).where(
                    Job.status.not_in(OPEN), Job.finished_at < utcnow(-days * 86_400.0)
                )
            )
            return result.rowcount


def _overtaken(connection: sa.Connection) -> list[sa.ColumnElement[bool]]:
    """Say which jobs' messages must have been taken.

    Redis gives out the messages of a priority in their order, and higher priorities first: a job
    that was published before another one came, which was not more urgent and has started, has
    lost its message with whoever took it.
    """
    oldest = sa.select(sa.func.min(Job.published_at)).where(_IS_OPEN, Job.status == Status.QUEUED)
    started = connection.execute(
        sa.select(Job.priority, sa.func.max(Job.created_at))
        .where(
            Job.created_at > oldest.scalar_subquery(),
            Job.started_at < utcnow(-REPUBLISH_AFTER),
        )
        .group_by(Job.priority)
    )
    return [
        sa.and_(Job.priority >= priority, Job.published_at < newest) for priority, newest in started
    ]


#: A job that has not ended, in the words of the index of those: SQLite uses a partial index only for
#: its own words, and knows no parameter's value when it chooses.
_IS_OPEN = Job.status.in_(sa.bindparam("open", OPEN, expanding=True, literal_execute=True))


def _settle(
    connection: sa.Connection, claim: Claim, statement: sa.Update, **values: object
) -> bool:
    """Hand the lease back with new values; False if it is no longer the claim's."""
    parameters = {"job": claim.job_id, "token": claim.lease_token, **values}
    return bool(connection.execute(statement, parameters).rowcount)


def _end_attempt(
    connection: sa.Connection, job_id: str, token: int, status: AttemptStatus, **values: object
) -> None:
    parameters = {"job": job_id, "token": token, "status": status, **values}
    connection.execute(statements.END_ATTEMPT, parameters)


def _columns(claim: Claim, output: Output) -> dict[str, Any]:
    """Spell an output in the columns of the attempt that gave it and ends now."""
    first_token_at = None
    if output.first_token_after is not None:
        # The attempt started by the database's clock; what came after, the worker measured.
        first_token_at = claim.started_at + dt.timedelta(seconds=output.first_token_after)
    return {
        "output": output.text,
        "deltas": output.deltas,
        "prompt_tokens": output.prompt_tokens,
        "output_tokens": output.output_tokens,
        "finish_reason": output.finish_reason,
        "max_output_tokens": output.max_output_tokens,
        "first_token_at": first_token_at,
    }
