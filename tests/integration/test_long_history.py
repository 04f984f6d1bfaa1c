"""With a long history everything costs what it costs with a short one, on SQLite and on PostgreSQL.

What a database looks at is counted, whatever makes it look: a statement, a foreign key, a trigger.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import sqlalchemy as sa

from jobs import db
from jobs.db import utcnow
from jobs.models import Job, Worker, WorkerState
from jobs.store import Store
from tests.conftest import RUNTIME, WORKER
from tests.integration.rows import OUTPUT, QUESTION, claim, let_leases_run_out, submit

JOBS = 20_000
WORKERS = 10_000
#: Questions that wait, with messages in Redis.
WAITING = 300
#: The most that one call may look at: rows and index entries on PostgreSQL, a tenth of the virtual
#: machine's instructions on SQLite. A walk through the workers alone would be `WORKERS` or more.
MOST = 4_000


def multiply(connection: sa.Connection, table: str, where: str, count: int, **new: str) -> None:
    """Add ``count`` copies of rows, with new values in SQL; ``n.i`` is the number of the copy."""
    columns = [c["name"] for c in sa.inspect(connection).get_columns(table)]
    if table == "attempts":
        columns.remove("id")
    values = ", ".join(new.get(name, f"old.{name}") for name in columns)
    connection.exec_driver_sql(
        f"INSERT INTO {table} ({', '.join(columns)}) "  # noqa: S608 (of this file's own words)
        "WITH RECURSIVE n(i) AS "
        f"(SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) "
        f"SELECT {values} FROM n, {table} AS old WHERE {where}"
    )


def fill(store: Store) -> None:
    """Add a history: workers of a hundred days, and jobs, half of them of the last minute.

    Of the workers, half were killed. A question of priority 0 is older than the newer jobs, all of
    them of priority 9, and so it may well wait.
    """
    sqlite = store.engine.dialect.name == "sqlite"

    def ago(seconds: str) -> str:
        if sqlite:
            return f"strftime('%Y-%m-%d %H:%M:%f', 'now', -({seconds}) || ' seconds') || '000'"
        return f"now() - ({seconds}) * interval '1 second'"

    ended, starved, waiting = submit(store, priority=9), submit(store, priority=0), submit(store)
    for stage_index in range(3):
        assert store.record(claim(store, ended, stage_index), OUTPUT)
    with store.engine.begin() as connection:
        db.begin(connection, write=True)
        days = ago(f"n.i * 100.0 * 86400 / {WORKERS}")
        killed = {"started_at": days, "seen_at": days, "ready_at": days, "state": "'ready'"}
        stopped = {**killed, "state": "'stopped'", "stopped_at": days}
        for name, values in (("killed", killed), ("stopped", stopped)):
            new = {"id": f"'{name}-' || n.i", "host": "'localhost'", "pid": "1", **values}
            multiply(connection, "workers", f"old.id = '{WORKER}'", WORKERS // 2, **new)
        multiply(
            connection,
            "jobs",
            f"old.id = '{waiting.id}'",
            WAITING,
            id="'resp_1' || n.i",
        )
        for name, days_ago in (("old", 10), ("new", 0)):
            created = ago(f"{days_ago} * 86400 + 50 - 0.001 * n.i")
            multiply(
                connection,
                "jobs",
                f"old.id = '{ended.id}'",
                JOBS // 2,
                id=f"'resp_2{name}' || n.i",
                created_at=created,
                started_at=created,
                finished_at=ago(f"{days_ago} * 86400 + 20"),
            )
            multiply(
                connection,
                "attempts",
                f"old.job_id = '{ended.id}'",
                JOBS // 2,
                job_id=f"'resp_2{name}' || n.i",
                worker_id="'stopped-1'",
            )
        late = sa.update(Job).where(Job.id == starved.id)
        connection.execute(late.values(published_at=utcnow(-60)))
    with store.engine.connect() as connection:
        connection.exec_driver_sql("ANALYZE")
        connection.commit()


@contextmanager
def counting(store: Store) -> Iterator[Callable[[], int]]:
    """Count what the database looks at: the yielded function tells how much since it was last asked."""
    if store.engine.dialect.name == "sqlite":
        steps = 0

        def step() -> int:
            nonlocal steps
            steps += 1
            return 0

        def watch(connection: Any, *_: Any) -> None:
            connection.set_progress_handler(step, 10)

        sa.event.listen(store.engine, "checkout", watch)
        last = 0

        def asked() -> int:
            nonlocal last
            now, before, last = steps, last, steps
            return now - before

        yield asked
        sa.event.remove(store.engine, "checkout", watch)
        return

    before = 0

    def read() -> int:
        nonlocal before
        with store.engine.connect() as connection:  # the only one that there is in the pool
            connection.exec_driver_sql("SELECT pg_stat_force_next_flush()")
            connection.commit()
            found = connection.exec_driver_sql(
                "SELECT (SELECT sum(seq_tup_read + coalesce(idx_tup_fetch, 0))"
                " FROM pg_stat_user_tables)"
                " + (SELECT sum(idx_tup_read) FROM pg_stat_user_indexes)"
            ).scalar_one()
            connection.rollback()
        now, before_, before = int(found), before, int(found)
        return now - before_

    yield read


def test_no_sweep_and_no_question_walks_through_the_history(store: Store) -> None:
    fill(store)
    looked: dict[str, int] = {}
    with counting(store) as look:
        look()

        def run(call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
            result = call(*arguments, **named)
            name = call.__name__
            looked[name] = max(looked.get(name, 0), look())
            return result

        run(store.busy)
        keyed = replace(QUESTION, idempotency_key="k", request_digest="d")
        job, _ = run(store.submit, keyed, max_queued=10_000)
        run(store.submit, keyed, max_queued=10_000)
        run(store.earlier, "k", "d")
        run(store.job, job.id)
        run(store.standing, job.id)
        for newest_first in (True, False):
            page, _ = run(store.page, limit=20, newest_first=newest_first, attempts=True)
            after = page[-1].id
            run(store.page, limit=20, after=after, newest_first=newest_first, attempts=True)
        run(store.sweep)
        for queue_empty in (False, True):
            run(
                store.put_back,
                run(store.take_unpublished, queue_empty=queue_empty, model=RUNTIME.model),
            )
        run(store.unpublish, job.id, 0)
        for stage_index in range(3):
            held = run(store.claim, job.id, stage_index, WORKER, job_timeout=60)
            run(store.heartbeat, WORKER, [(job.id, held.lease_token)])
            run(store.held, WORKER)
            run(store.suspicious, job.id, stage_index)
            run(store.record, held, OUTPUT)
        for end in (store.release, store.fail):
            run(end, claim(store, submit(store)), *["why"] * (1 + (end == store.fail)))
        job = submit(store)
        held = claim(store, job)
        run(store.cancel, job.id)
        run(store.keep_partial, held, OUTPUT)
        claim(store, submit(store))
        job = submit(store)
        claim(store, job)
        store.cancel(job.id)
        let_leases_run_out(store)
        look()
        run(store.sweep)
        other = replace(RUNTIME, description={"engine": "other"})
        run(store.register, "worker-2", "localhost", 2, other)
        run(store.set_worker_state, "worker-2", WorkerState.READY)
        run(store.restart, 600)
        assert run(store.restart, 0), "the model of what was given back is gone"
        run(store.ready_workers)
        run(store.loading)
        run(store.worker_of_process, "localhost", 1)
        run(store.tokenizer, run(store.serving).tokenizer_digest)
        run(store.check_writable)
        assert run(store.forget_workers) is not None
        assert run(store.delete_older, 50) == 0
        assert run(store.delete_older, 5) == 100
        with store.engine.connect() as connection:
            assert connection.scalar(sa.select(sa.func.count(Worker.id))) == WORKERS + 2 - 100
    public = {
        name
        for name, _ in inspect.getmembers(Store, inspect.isfunction)
        if not name.startswith("_") and name != "close"
    }
    assert public - set(looked) == set(), "all that can be asked is counted here"
    assert {name: count for name, count in looked.items() if count > MOST} == {}
