"""Accepting jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.database import Database
from jobs.errors import IdempotencyError, QueueFullError, QuotaExceededError
from jobs.ids import new_id
from jobs.models import ApiKey, Job
from jobs.pipeline import Sampling, Turn, sampling_values
from jobs.queued_counts import QueuedCounts
from jobs.statements import in_queue, jobs, requests
from jobs.statements.requests import Keyed
from jobs.trace_context import TraceContext
from jobs.transient import is_transient, retry_on_conflict


@dataclass(frozen=True)
class NewJob:
    """A question, and how to answer it."""

    question: str
    system: str
    sampling: Sampling
    rounds: int
    priority: int
    background: bool
    metadata: dict[str, str]
    input_items: list[dict[str, Any]] | None = None
    #: None for the question alone.
    turns: Sequence[Turn] | None = None
    previous_response_id: str | None = None
    options: dict[str, Any] | None = None
    #: The request, if it has an idempotency key.
    keyed: Keyed | None = None
    #: The batch that the job is a line of, and the client's name for the line.
    batch_id: str | None = None
    custom_id: str | None = None
    #: The job that is replayed.
    replay_of: str | None = None


@dataclass(frozen=True)
class JobRequest:
    """A request for a new job: the job, and whose it is."""

    owner: str
    new: NewJob
    #: The API key that it is submitted with, if any. It may have a maximum of queued jobs of its own.
    key: ApiKey | None = None
    #: The span that the job is below, if its request belongs to a trace.
    trace: TraceContext | None = None


#: An accepted job, and whether it is new.
Accepted = tuple[Job, bool]


def submit(
    database: Database,
    owner: str,
    new: NewJob,
    *,
    max_queued: int,
    key: ApiKey | None = None,
    counts: QueuedCounts | None = None,
) -> Accepted:
    """Accept one job; see `submit_all`.

    Raises:
        QueueFullError: there are ``max_queued`` queued jobs.
        QuotaExceededError: the key has reached its maximum number of queued jobs.
        IdempotencyError: the key was used for a different request.
    """
    request = JobRequest(owner, new, key)
    (outcome,) = submit_all(database, [request], max_queued=max_queued, counts=counts)
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def submit_all(
    database: Database,
    requests: Sequence[JobRequest],
    *,
    max_queued: int,
    counts: QueuedCounts | None = None,
) -> list[Accepted | Exception]:
    """Accept jobs in one transaction. Once this returns, they are durable and count as published.

    Each has its own outcome: what is wrong with one of them refuses that one only.

    Args:
        database: of the jobs.
        requests: for the jobs.
        max_queued: the maximum number of queued jobs of all owners.
        counts: of the queued jobs, if this process submits many.

    Returns:
        for each, in their order: the job and whether it is new, or why it is refused, as `submit` raises it. If the
        same request was done before, the job is the one that it created, as it is now.

    Raises:
        sqlalchemy.exc.SQLAlchemyError: the database accepts none.
    """
    counts = counts or QueuedCounts()
    try:
        return _submit_together(database, requests, max_queued, counts)
    except sa.exc.DBAPIError as error:
        if is_transient(error):
            raise
        if len(requests) > 1:
            return [
                outcome
                for each in requests
                for outcome in submit_all(database, [each], max_queued=max_queued, counts=counts)
            ]
        return [_outcome_of_error(database, requests[0], error)]


@retry_on_conflict
def _submit_together(
    database: Database,
    requests: Sequence[JobRequest],
    max_queued: int,
    counts: QueuedCounts,
) -> list[Accepted | Exception]:
    outcomes: list[Accepted | Exception] = []
    with database.write() as connection:
        unit = _Unit(connection)
        for each in requests:
            try:
                outcomes.append(_accept(unit, each, max_queued, counts))
            except (IdempotencyError, QueueFullError, QuotaExceededError) as error:
                outcomes.append(error)
        unit.flush()
    return outcomes


class _Unit:
    """A unit of work that adds jobs: together, unless something has to be looked up meanwhile."""

    def __init__(self, connection: sa.Connection) -> None:
        self._connection = connection
        self._new: list[Job] = []

    def add(self, job: Job) -> None:
        """Add a job, now or later."""
        self._new.append(job)

    def flush(self) -> sa.Connection:
        """Add the jobs that are to be added; return the connection, for a query that sees them."""
        if self._new:
            jobs.add_all(self._connection, self._new)
            self._new = []
        return self._connection


def _accept(unit: _Unit, request: JobRequest, max_queued: int, counts: QueuedCounts) -> Accepted:
    """Add a job, unless its idempotency key has one, or there are too many."""
    new, key = request.new, request.key
    if new.keyed is not None:
        with Session(unit.flush(), expire_on_commit=False) as session:
            existing = jobs.find_made(session, new.keyed)
        if existing:
            return existing, False
    _check_limits(unit, max_queued, key, counts)
    job = build_job(request.owner, new, None if key is None else key.id, request.trace)
    unit.add(job)
    return job, True


def _outcome_of_error(
    database: Database, request: JobRequest, error: sa.exc.DBAPIError
) -> Accepted | Exception:
    """Return the outcome of a job that the database refused."""
    if not isinstance(error, sa.exc.IntegrityError):
        return error
    # PostgreSQL: another transaction committed the same key after this one had looked for it.
    try:
        existing = find_made(database, request.new.keyed)
    except IdempotencyError as conflict:
        return conflict
    return error if existing is None else (existing, False)


def find_made(database: Database, keyed: Keyed | None) -> Job | None:
    """Return the job that the same request created before; None if there is none, or it has no idempotency key.

    Raises:
        IdempotencyError: the key was used for a different request.
    """
    if keyed is None:
        return None
    with database.read_session() as session:
        return jobs.find_made(session, keyed)


def _check_limits(unit: _Unit, max_queued: int, key: ApiKey | None, counts: QueuedCounts) -> None:
    if not counts.admit(None, max_queued, lambda: in_queue.count_without_lines(unit.flush())):
        raise QueueFullError
    if key is None or key.max_queued is None:
        return
    if not counts.admit(
        key.id, key.max_queued, lambda: in_queue.count_of_key(unit.flush(), key.id)
    ):
        raise QuotaExceededError(key.max_queued)


def build_job(
    owner: str, new: NewJob, key_id: str | None, trace: TraceContext | None = None
) -> Job:
    """Return the row of a new job, which counts as published."""
    return Job(
        id=new_id("resp_"),
        owner=owner,
        key_id=key_id,
        question=new.question,
        system=new.system,
        input_items=new.input_items,
        turns=None if new.turns is None else [asdict(turn) for turn in new.turns],
        previous_response_id=new.previous_response_id,
        options=new.options or None,
        **sampling_values(new.sampling),
        stop=list(new.sampling.stop) or None,
        rounds=new.rounds,
        priority=new.priority,
        background=new.background,
        metadata_=new.metadata,
        **requests.columns(new.keyed),
        batch_id=new.batch_id,
        custom_id=new.custom_id,
        replay_of=new.replay_of,
        traceparent=None if trace is None else trace.traceparent,
        tracestate=None if trace is None else trace.state,
        attempts=[],
    )
