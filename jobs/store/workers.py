"""Who runs stages: workers come, say that they are alive, and go."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import zlib
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import sqlalchemy as sa

from jobs.db import ago, utcnow
from jobs.models import Attempt, Job, Tokenizer, Worker, WorkerState
from jobs.store.base import Base
from jobs.store.running import LEASE

HEARTBEAT_INTERVAL = 5.0
#: A worker not seen for this many seconds is not counted as alive.
WORKER_STALE = 20.0
#: Seconds after which a worker that was not seen has died, whatever it said last.
WORKER_GONE = 30 * 86_400.0
#: Seconds after which one that never said it was ready is taken to have died while it loaded.
LONGEST_LOADING = 900.0


@dataclass(frozen=True)
class Runtime:
    """What a worker serves, as it is kept with everything it did."""

    description: dict[str, Any]
    context: int
    #: The text of ``tokenizer.json``.
    tokenizer: str

    @cached_property
    def model(self) -> str:
        """SHA-256 over what a job's texts depend on: workers with the same one share jobs.

        That is the contents of base and adapters, what they are loaded as, how text becomes tokens,
        and the engine, since each draws in its own way. Names and hosts change no text. Devices and
        versions of software may round differently, and the context only says where a text is cut,
        which its attempt records: workers that differ in these alone share jobs.
        """
        told = self.description
        identity = {
            "base": told.get("base", {}).get("digest"),
            "adapters": {role: a.get("digest") for role, a in told.get("adapters", {}).items()},
            "dtype": told.get("dtype"),
            "quantization": told.get("quantization"),
            "split_special_tokens": told.get("split_special_tokens", False),
            "engine": told.get("engine"),
        }
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class Serving:
    """The model that the newest worker serves."""

    context: int
    tokenizer_digest: str
    #: Whether special tokens in a prompt are text; ``tokenizer.json`` does not say it.
    split_special_tokens: bool


class Workers(Base):
    """The workers, and the models that they serve."""

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
                    model=runtime.model,
                    context=runtime.context,
                    tokenizer_digest=digest,
                )
            )

    def set_worker_state(self, worker_id: str, state: WorkerState) -> None:
        stopped = utcnow() if state is WorkerState.STOPPED else None
        ready = utcnow() if state is WorkerState.READY else sa.null()
        with self._write() as connection:
            connection.execute(
                sa.update(Worker)
                .where(Worker.id == worker_id)
                .values(
                    state=state,
                    seen_at=utcnow(),
                    stopped_at=stopped,
                    ready_at=sa.func.coalesce(Worker.ready_at, ready),
                )
            )

    def heartbeat(self, worker_id: str, running: Collection[tuple[str, int]]) -> bool:
        """Say that a worker is alive, and extend its leases on what it is running.

        Args:
            worker_id: whose.
            running: (job id, lease token) of the stages that its threads are busy with. A
                lease that no thread knows of, as after a claim whose answer was lost, runs out.

        Returns:
            False if the worker was gone for so long that it was forgotten: it can claim nothing.
        """
        with self._write() as connection:
            known = connection.execute(
                sa.update(Worker).where(Worker.id == worker_id).values(seen_at=utcnow())
            ).rowcount
            if running:
                connection.execute(
                    sa.update(Job)
                    .where(
                        Job.worker_id == worker_id,
                        sa.tuple_(Job.id, Job.lease_token).in_(list(running)),
                    )
                    .values(lease_expires_at=utcnow(LEASE))
                )
            return bool(known)

    def held(self, worker_id: str) -> set[tuple[str, int]]:
        """Return the (job id, lease token) pairs a worker should go on with: the rest it must stop."""
        with self._read_rows() as connection:
            rows = connection.execute(
                sa.select(Job.id, Job.lease_token, Job.finished_at).where(
                    Job.worker_id == worker_id
                )
            )
            return {(row.id, row.lease_token) for row in rows if row.finished_at is None}

    def forget_workers(
        self, after: dt.datetime | None = None, *, limit: int = 100
    ) -> dt.datetime | None:
        """Look at the next workers by age, and delete those that are gone and ran nothing that is kept.

        The newest one stays: it tells what was served last.

        Args:
            after: what the call before returned; None begins with the oldest.
            limit: the most workers to look at.

        Returns:
            where the next call goes on; None if there are no more.
        """
        unused = sa.and_(_absent(Attempt.worker_id), _absent(Job.worker_id))
        gone = sa.or_(Worker.stopped_at.is_not(None), Worker.seen_at < utcnow(-WORKER_GONE))
        page = sa.select(Worker.id, Worker.started_at, sa.and_(gone, unused).label("unused"))
        if after is not None:
            page = page.where(Worker.started_at > after)
        with self._read_rows() as connection:
            newest = connection.scalar(sa.select(sa.func.max(Worker.started_at)))
            rows = connection.execute(page.order_by(Worker.started_at).limit(limit)).all()
        ids = [row.id for row in rows if row.unused and row.started_at != newest]
        if ids:
            with self._write() as connection:
                delete = sa.delete(Worker).where(Worker.id == sa.bindparam("worker"), unused)
                connection.execute(delete, [{"worker": worker_id} for worker_id in ids])
        return rows[-1].started_at if len(rows) == limit else None

    def ready_workers(self) -> list[Worker]:
        """Return the workers that are ready and were seen lately."""
        with self._read() as session:
            return list(
                session.scalars(
                    sa.select(Worker).where(
                        Worker.state == WorkerState.READY, Worker.seen_at > ago(WORKER_STALE)
                    )
                )
            )

    def loading(self) -> bool:
        """Whether a worker is loading its model: it says nothing until it has."""
        with self._read_rows() as connection:
            recent = sa.exists().where(
                Worker.state == WorkerState.LOADING, Worker.started_at > ago(LONGEST_LOADING)
            )
            return bool(connection.scalar(sa.select(recent)))

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
            newest = (
                sa.select(Worker.context, Worker.tokenizer_digest, Worker.runtime)
                .order_by(Worker.started_at.desc())
                .limit(1)
            )
            # One that stopped, perhaps because its model did not load, counts last.
            row = connection.execute(newest.where(Worker.stopped_at.is_(None))).first()
            row = row or connection.execute(newest).first()
            if row is None:
                return None
            split = row.runtime.get("split_special_tokens", False)
            return Serving(row.context, row.tokenizer_digest, split)

    def tokenizer(self, digest: str) -> str:
        """Return the text of a registered ``tokenizer.json``."""
        with self._read() as session:
            return zlib.decompress(session.get_one(Tokenizer, digest).body).decode()


def _absent(column: sa.orm.InstrumentedAttribute[Any]) -> sa.ColumnElement[bool]:
    """Whether a worker's id is not among a column's values, by one look at the column's index.

    Where most rows are of one worker, PostgreSQL expects to meet every id at once, and so would read
    the whole table for one that is not there.
    """
    first = sa.select(sa.func.min(column)).where(column >= Worker.id).correlate(Worker)
    return sa.func.coalesce(first.scalar_subquery(), "") != Worker.id
