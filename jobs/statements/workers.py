"""Statements on workers and their tokenizers."""

from __future__ import annotations

import datetime as dt
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from jobs.database_clock import utcnow, utcnow_once
from jobs.models import Attempt, Job, Tokenizer, Worker, WorkerState
from jobs.statements.inserting import insert
from jobs.timing import ALIVE_FOR

#: Seconds after its last heartbeat after which a worker counts as dead for good.
DEAD_AFTER = 30 * 86_400.0
#: Seconds after its start after which a worker that was never ready counts as dead.
MAX_LOADING = 900.0
#: In place of the tokenizer of a worker that an imported job came with. No tokenizer has this digest.
IMPORTED = "imported"


def _is_ready() -> sa.ColumnElement[bool]:
    return sa.and_(
        Worker.state == WorkerState.READY,
        Worker.seen_at > utcnow_once(-ALIVE_FOR),
        # Seen later than now, it was before the clock was set back.
        Worker.seen_at < utcnow_once(ALIVE_FOR),
    )


def add_tokenizer(connection: sa.Connection, digest: str, body: bytes) -> None:
    """Add a tokenizer, unless it is there."""
    new = insert(connection, Tokenizer).values(digest=digest, body=body)
    connection.execute(new.on_conflict_do_nothing())


def get_tokenizer(connection: sa.Connection, digest: str) -> bytes:
    """Return a tokenizer's body."""
    return connection.execute(
        sa.select(Tokenizer.body).where(Tokenizer.digest == digest)
    ).scalar_one()


def add(connection: sa.Connection, **columns: object) -> None:
    """Add a worker that is starting."""
    connection.execute(sa.insert(Worker).values(state=WorkerState.LOADING, **columns))


def load(session: Session, ids: Collection[str]) -> dict[str, Worker]:
    """Return workers by their ids."""
    return {w.id: w for w in session.scalars(sa.select(Worker).where(Worker.id.in_(ids)))}


def is_registered(connection: sa.Connection, worker_id: str) -> bool:
    """Return whether a worker has a row."""
    return bool(connection.scalar(sa.select(sa.exists().where(Worker.id == worker_id))))


def set_state(connection: sa.Connection, worker_id: str, state: WorkerState) -> None:
    """Set a worker's state, and the times that depend on it."""
    connection.execute(
        sa.update(Worker)
        .where(Worker.id == worker_id)
        .values(
            state=state,
            seen_at=utcnow(),
            stopped_at=utcnow() if state is WorkerState.STOPPED else None,
            ready_at=sa.func.coalesce(
                Worker.ready_at, utcnow() if state is WorkerState.READY else sa.null()
            ),
        )
    )


def set_runtime(connection: sa.Connection, worker_id: str, runtime: dict[str, Any]) -> None:
    """Set the description of what a worker serves."""
    connection.execute(sa.update(Worker).where(Worker.id == worker_id).values(runtime=runtime))


def set_seen(connection: sa.Connection, worker_id: str, usage: Mapping[str, int] | None) -> bool:
    """Note that a worker is alive, and what it uses; return False if it has no row."""
    statement = sa.update(Worker).where(Worker.id == worker_id)
    values = {"seen_at": utcnow(), "usage": usage}
    return bool(connection.execute(statement.values(values)).rowcount)


def list_ready(session: Session) -> list[Worker]:
    """Return the workers that are ready and alive."""
    return list(session.scalars(sa.select(Worker).where(_is_ready())))


def ready_runtimes(connection: sa.Connection, limit: int) -> list[dict[str, Any]]:
    """Return what the workers run that are ready and alive."""
    # In the order of the index: PostgreSQL would read the table for a few of any.
    query = sa.select(Worker.runtime).where(_is_ready()).order_by(Worker.seen_at.desc())
    return list(connection.scalars(query.limit(limit)))


def count_ready(connection: sa.Connection, model: str | None) -> int:
    """Return how many workers are ready and alive; only those with a model, unless it is None."""
    query = sa.select(sa.func.count()).where(_is_ready())
    if model is not None:
        query = query.where(Worker.model == model)
    return connection.scalar(query) or 0


def last_seen(connection: sa.Connection) -> dt.datetime | None:
    """Return when a worker was last alive here; None if there never was one."""
    query = sa.select(Worker.seen_at).where(Worker.tokenizer_digest != IMPORTED)
    return connection.scalar(query.order_by(Worker.seen_at.desc()).limit(1))


def ready_models(connection: sa.Connection) -> set[str]:
    """Return the models of the workers that are ready and alive."""
    return set(connection.scalars(sa.select(Worker.model).where(_is_ready()).distinct()))


def models_seen_within(connection: sa.Connection, seconds: float) -> set[str]:
    """Return the models of the workers that were alive lately, and ready at any time."""
    condition = sa.and_(Worker.seen_at > utcnow_once(-seconds), Worker.ready_at.is_not(None))
    return set(connection.scalars(sa.select(Worker.model).where(condition).distinct()))


def any_loading(connection: sa.Connection) -> bool:
    """Return whether a worker is loading its model. It sends no heartbeats until it is ready."""
    recent = sa.exists().where(
        Worker.state == WorkerState.LOADING, Worker.started_at > utcnow_once(-MAX_LOADING)
    )
    return bool(connection.scalar(sa.select(recent)))


def find_by_process(session: Session, host: str, pid: int) -> Worker | None:
    """Return the worker that a process registered."""
    return session.scalar(
        sa.select(Worker)
        .where(Worker.host == host, Worker.pid == pid, Worker.stopped_at.is_(None))
        .order_by(Worker.started_at.desc())
        .limit(1)
    )


def serving(connection: sa.Connection) -> Sequence[sa.Row[int, str, dict[str, Any]]]:
    """Return context, tokenizer digest and runtime of the workers that are ready.

    If none is ready, return those of the newest worker. One that has stopped, perhaps because its model did
    not load, counts only if there is no other.
    """
    columns = sa.select(Worker.context, Worker.tokenizer_digest, Worker.runtime)
    # Not those of imported jobs, which never served anything here.
    here = columns.where(Worker.tokenizer_digest != IMPORTED)
    newest = here.order_by(Worker.started_at.desc()).limit(1)
    # Not sorted: SQLite would walk the index by age, and so through all workers.
    ready = columns.where(_is_ready())
    for query in (ready, newest.where(Worker.stopped_at.is_(None)), newest):
        if rows := connection.execute(query).all():
            return rows
    return []


def find_unused(
    connection: sa.Connection, after: dt.datetime | None, limit: int
) -> tuple[list[str], dt.datetime | None]:
    """Find workers that are dead or stopped and that no job or attempt refers to, by their age.

    The newest worker never counts as unused: it tells what was served last.

    Args:
        connection: in any transaction.
        after: where to start: the start time that the call before returned; None for the oldest.
        limit: the maximum number of workers to look at.

    Returns:
        ids of unused workers, and where to continue; None at the end.
    """
    query = sa.select(Worker.id, Worker.started_at, _is_unused().label("unused"))
    if after is not None:
        query = query.where(Worker.started_at > after)
    newest_start = connection.scalar(sa.select(sa.func.max(Worker.started_at)))
    rows = connection.execute(query.order_by(Worker.started_at).limit(limit)).all()
    ids = [row.id for row in rows if row.unused and row.started_at != newest_start]
    return ids, rows[-1].started_at if len(rows) == limit else None


def delete_unused(connection: sa.Connection, ids: Sequence[str]) -> None:
    """Delete workers, but for those that are no longer unused."""
    delete = sa.delete(Worker).where(Worker.id == sa.bindparam("worker"), _is_unused())
    connection.execute(delete, [{"worker": worker_id} for worker_id in ids])


def _is_unused() -> sa.ColumnElement[bool]:
    return sa.and_(
        sa.or_(Worker.stopped_at.is_not(None), Worker.seen_at < utcnow(-DEAD_AFTER)),
        _not_referred_to_by(Attempt.worker_id),
        _not_referred_to_by(Job.worker_id),
    )


def _not_referred_to_by(column: sa.orm.InstrumentedAttribute[Any]) -> sa.ColumnElement[bool]:
    """Return the condition that a worker's id is not among a column's values: one look at its index.

    Where most rows have the same worker, PostgreSQL's planner expects to find any id soon, and would read
    the whole table for one that is not there. So look up the first value from the id on instead.
    """
    first = sa.select(sa.func.min(column)).where(column >= Worker.id).correlate(Worker)
    return sa.func.coalesce(first.scalar_subquery(), "") != Worker.id
