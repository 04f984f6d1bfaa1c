"""A long history, and many workers, made of copies of rows."""

from __future__ import annotations

import datetime as dt
import json
from typing import Any

import sqlalchemy as sa

from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.database_engine import begin
from jobs.models import ANONYMOUS, Job, Rollup, SearchDocument
from jobs.search import facets
from jobs.statements import documents
from jobs.statistics.counted import Counted
from jobs.statistics.periods import Level, start_of
from jobs.times import from_microseconds
from jobs.use_cases import cancellation, deliveries, requests, stages, submission, webhooks
from jobs.webhooks.events import EVENT_TYPES
from jobs.webhooks.outcome import Outcome
from tests.conftest import WORKER
from tests.integration.rows import OUTPUT, QUESTION, claim, submit

JOBS = 20_000
WORKERS = 10_000
#: An owner with a webhook endpoint.
HOOKED = "hooked"
ENDPOINT: dict[str, Any] = {
    "url": "https://example.com/",
    "name": "hook",
    "event_types": EVENT_TYPES,
    "allowed": (),
}
#: What a job of the history counts for.
COUNTED = Counted("completed", 3, 0, 0, 1, None, None, None, 0, 0)


def multiply(connection: sa.Connection, table: str, where: str, count: int, **changes: str) -> None:
    """Add ``count`` copies of rows, with new values in SQL; ``n.i`` is the number of the copy."""
    columns = [c["name"] for c in sa.inspect(connection).get_columns(table)]
    if table == "attempts":
        columns.remove("id")
    values = ", ".join(changes.get(name, f"old.{name}") for name in columns)
    connection.exec_driver_sql(
        f"INSERT INTO {table} ({', '.join(columns)}) "
        "WITH RECURSIVE n(i) AS "
        f"(SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {count}) "
        f"SELECT {values} FROM n, {table} AS old WHERE {where}"
    )


def fill(database: Database, queued: int) -> None:
    """Add a history: workers of a hundred days, and jobs, half of them of the last minute.

    Of the workers, half were killed. A question of priority 0 is older than the newer jobs, all of
    them of priority 9, and so it may well wait.
    """
    sqlite = database.engine.dialect.name == "sqlite"

    def ago(seconds: str) -> str:
        if sqlite:
            return f"strftime('%Y-%m-%d %H:%M:%f', 'now', -({seconds}) || ' seconds') || '000'"
        return f"now() - ({seconds}) * interval '1 second'"

    ended, starved, waiting = (
        submit(database, priority=9),
        submit(database, priority=0),
        submit(database),
    )
    for stage_index in range(3):
        assert stages.record(database, claim(database, ended, stage_index), OUTPUT)
    with database.engine.begin() as connection:
        begin(connection, write=True)
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
            queued,
            id="'resp_1' || n.i",
        )
        # The copies are in the log.
        sealed = sa.update(Job).where(Job.id == ended.id)
        connection.execute(sealed.values(log_salt=bytes(16)))
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
                log_index=f"{days_ago} * 100000 + n.i",
                replay_of="'resp_2old' || (n.i - n.i / 400 * 400)"
                if name == "new"
                else "old.replay_of",
                unindexed="0",
                counted=f"'{json.dumps(COUNTED.dump())}'",
            )
            multiply(
                connection,
                "attempts",
                f"old.job_id = '{ended.id}'",
                JOBS // 2,
                job_id=f"'resp_2{name}' || n.i",
                worker_id="'stopped-1'",
            )
        add_documents(connection, ended.id)
        late = sa.update(Job).where(Job.id == starved.id)
        connection.execute(late.values(published_at=utcnow(-60)))
    add_deliveries(database)
    add_requests(database)
    add_rollups(database)
    if not sqlite:  # SQLite's statistics are those of the migrations.
        with database.engine.connect() as connection:
            connection.exec_driver_sql("ANALYZE")
            connection.commit()


def add_documents(connection: sa.Connection, job_id: str) -> None:
    """Add the search documents of the jobs that have ended, a second apart each; half of them are of a fox.

    They are in the middle of the buckets of numbers, so that an order by a number searches empty ones first. The newest
    is half a second after the end of a period of each length up to 18 minutes, and the oldest a year before all others.
    """
    sqlite = connection.dialect.name == "sqlite"
    [job] = connection.execute(sa.select(Job).where(Job.id == job_id)).mappings().all()
    length = documents.first_id(from_microseconds(1 << documents.PERIODS[2]))
    moment = documents.first_id(job["created_at"]) // length * length
    moment += documents.first_id(from_microseconds(500_000))
    year = documents.first_id(from_microseconds(365 * 86_400_000_000))
    columns = {
        "id": moment,
        "job_id": job_id,
        "attempts": 1,
        "changed": 0.5,
        "duration": 1.0,
        "details": {},
        "terms": f"_doc why {facets.share_term(0.5)} {facets.duration_term(1.0)}",
        "words": " why _ ",
    }
    connection.execute(sa.insert(SearchDocument).values(columns))
    for number, name in enumerate(("new", "old")):
        document_id = f"{moment} - CAST(n.i AS BIGINT) * 2000000 * 2048 - {number}"
        if name == "old":
            document_id += f" - CASE n.i WHEN {JOBS // 2} THEN {year} ELSE 0 END"
        terms = "old.terms || CASE n.i - n.i / 2 * 2 WHEN 0 THEN ' dog fox' ELSE ' dog' END"
        if not sqlite:
            for bits in documents.PERIODS:
                period = f"to_hex(({document_id}) >> {bits + documents.TIE_BITS})"
                terms += f" || ' _t{bits}_' || {period}"
        multiply(
            connection,
            "search_documents",
            f"old.job_id = '{job_id}'",
            JOBS // 2,
            id=f"({document_id})",
            job_id=f"'resp_2{name}' || n.i",
            terms=terms,
            words="' why _ ' || CASE n.i - n.i / 2 * 2 WHEN 0 THEN 'fox dog ' ELSE 'dog why ' END",
        )


def add_requests(database: Database) -> None:
    """Add requests with idempotency keys."""
    requests.note_outcome(database, requests.Keyed(ANONYMOUS, "old", "d" * 64))
    with database.engine.begin() as connection:
        begin(connection, write=True)
        multiply(
            connection,
            "keyed_requests",
            "old.key = 'old'",
            JOBS // 2,
            key="'old' || n.i",
        )


def add_deliveries(database: Database) -> None:
    """Add webhooks that were delivered, to an endpoint of an owner."""
    webhooks.create(database, HOOKED, **ENDPOINT)
    job, _ = submission.submit(database, HOOKED, QUESTION, max_queued=1_000_000)
    cancellation.cancel(database, HOOKED, job.id)
    [taken] = deliveries.take(database, room=lambda _: 8, limit=8)
    deliveries.record(database, [(taken, Outcome(204, None, 0.1))])
    with database.engine.begin() as connection:
        begin(connection, write=True)
        multiply(
            connection,
            "webhook_deliveries",
            f"old.id = '{taken.id}'",
            JOBS,
            id="'whd_' || n.i",
            object_id="'resp_2new' || n.i",
        )


def add_rollups(database: Database) -> None:
    """Add the rollups of a history of 10 years: as many as there are jobs in each hour of it."""
    sqlite = database.engine.dialect.name == "sqlite"
    now = dt.datetime.now(dt.UTC).replace(minute=0, second=0, microsecond=0)
    tally = {"counts": {"jobs": 1, "completed": 1}, "measures": {}}
    with database.write() as connection:
        for level, number, unit in ((Level.HOUR, 20_000, "hour"), (Level.DAY, 3650, "day")):
            first = {"owner": "", "level": level, "start": start_of(level, now), "model": "m"}
            connection.execute(sa.insert(Rollup).values(**first, jobs=1, tally=tally))
            start = f"old.start - n.i * interval '1 {unit}'"
            if sqlite:
                start = f"strftime('%Y-%m-%d %H:%M:%f', old.start, -n.i || ' {unit}s') || '000'"
            multiply(connection, "rollups", f"old.level = '{level}'", number, start=start)
        month = start_of(Level.MONTH, now)
        for _ in range(120):
            first = {"owner": "", "level": Level.MONTH, "start": month, "model": "m"}
            connection.execute(sa.insert(Rollup).values(**first, jobs=1, tally=tally))
            month = start_of(Level.MONTH, month - dt.timedelta(days=1))
