"""Sealing, and deleting what is old, on both databases."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import migrations
from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.maintenance import Maintenance
from jobs.models import ANONYMOUS, Batch, BatchStatus, Job, KeyedRequest, Worker
from jobs.page_request import PageRequest
from jobs.pipeline import DEFAULT_PRIORITY
from jobs.progress import Progress
from jobs.protocol.history import history
from jobs.queue import Publisher, make_app
from jobs.tlog.note import Signer
from jobs.use_cases import (
    batch_answers,
    cancellation,
    deletion,
    indexing,
    queries,
    requests,
    sealing,
    verifying,
    workers,
)
from jobs.use_cases.log_signing import Signing
from jobs.use_cases.requests import Keyed
from tests.conftest import RUNTIME
from tests.integration.rows import submit
from tests.polling import poll
from tests.servers import RedisServer


def duties(
    database: Database, progress: Progress, redis_server: RedisServer, **settings: Any
) -> Maintenance:
    publisher = Publisher(make_app(redis_server.url))
    return Maintenance(database, publisher, progress, **{"retention_days": 0, **settings})


def test_ended_jobs_are_sealed(
    database: Database, progress: Progress, redis_server: RedisServer
) -> None:
    process = duties(database, progress, redis_server)
    assert not process.seal()
    for _ in range(sealing.MAX_JOBS):
        cancellation.cancel(database, ANONYMOUS, submit(database).id)
    assert process.seal(), "there may be more"
    assert not process.seal()
    assert verifying.verify(database, history).jobs == sealing.MAX_JOBS


def test_many_deletions_are_sealed_at_once(
    database: Database, progress: Progress, redis_server: RedisServer
) -> None:
    process = duties(database, progress, redis_server)
    for _ in range(sealing.MAX_JOBS):
        cancellation.cancel(database, ANONYMOUS, submit(database).id)
    process.seal()
    for job in queries.list_jobs(database, ANONYMOUS, PageRequest(sealing.MAX_JOBS))[0]:
        deletion.delete(database, ANONYMOUS, job.id)
    assert process.seal(), "there may be more"
    assert not process.seal()
    assert verifying.verify(database, history).entries == 2 * sealing.MAX_JOBS


def test_a_running_process_seals_and_indexes_within_seconds(
    database: Database, progress: Progress, redis_server: RedisServer
) -> None:
    process = duties(database, progress, redis_server)
    process.start()
    cancellation.cancel(database, ANONYMOUS, submit(database).id)
    poll(lambda: not sealing.any_pending(database))
    poll(lambda: not indexing.any_pending(database))
    process.stop()
    assert verifying.verify(database, history).jobs == 1


def test_a_running_process_lets_lines_that_have_waited_take_their_turn(
    database: Database, progress: Progress, redis_server: RedisServer
) -> None:
    line = submit(database, batch_id="batch_1", priority=0)
    with database.engine.begin() as connection:
        created_at = utcnow(-batch_answers.PATIENCE - 1)
        connection.execute(sa.update(Job).values(created_at=created_at))
    process = duties(database, progress, redis_server)
    process.start()
    poll(lambda: queries.get_job(database, ANONYMOUS, line.id).priority == DEFAULT_PRIORITY)
    process.stop()


def test_the_write_ahead_log_is_copied_into_the_file(
    tmp_path: Path, progress: Progress, redis_server: RedisServer
) -> None:
    """A writer does so only when the log is four times as long as by default: it is held up for that long."""
    file, copy = tmp_path / "jobs.sqlite3", tmp_path / "copy.sqlite3"
    database = Database(f"sqlite:///{file}")
    migrations.migrate(database.engine)
    with closing(sqlite3.connect(file)) as reader:
        [pages] = reader.execute("PRAGMA wal_autocheckpoint").fetchone()
    with database.read() as connection:
        assert connection.scalar(sa.text("PRAGMA wal_autocheckpoint")) == 4 * pages
    job = submit(database)
    process = duties(database, progress, redis_server)
    process.start()

    def copied() -> list[tuple[str]]:
        shutil.copy(file, copy)  # Without the log.
        # It has no tables before.
        with closing(sqlite3.connect(copy)) as found, suppress(sqlite3.DatabaseError):
            return found.execute("SELECT id FROM jobs").fetchall()
        return []

    assert poll(copied) == [(job.id,)]
    process.stop()
    database.close()


def test_it_is_said_once_that_the_log_cannot_be_signed(
    database: Database,
    progress: Progress,
    redis_server: RedisServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    given = Signing(Signer.generate("example.com/log"))
    cancellation.cancel(database, ANONYMOUS, submit(database).id)
    duties(database, progress, redis_server, signing=given).seal()
    cancellation.cancel(database, ANONYMOUS, submit(database).id)
    process = duties(database, progress, redis_server)
    for _ in range(2):
        assert not process.seal()
        [said] = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert said.endswith("the log is signed with a HELIXQ_LOG_KEY: give it to this process too")


def end_a_batch(database: Database) -> None:
    """Add a batch that ended three days ago."""
    names: dict[str, Any] = {"id": "batch_1", "owner": "ann", "endpoint": "/v1/responses"}
    names |= {"chat_context": "turns", "metadata_": {}, "input_file_id": "file-1"}
    ended: dict[str, Any] = {"status": BatchStatus.FAILED, "ended_at": utcnow(-3 * 86_400)}
    with database.engine.begin() as connection:
        connection.execute(sa.insert(Batch).values(**names, **ended, expires_at=utcnow()))


def test_histories_are_kept_forever_unless_a_time_is_set(
    database: Database, progress: Progress, redis_server: RedisServer
) -> None:
    job = cancellation.cancel(database, ANONYMOUS, submit(database).id)
    end_a_batch(database)
    with database.engine.begin() as connection:
        connection.execute(sa.update(Job).values(finished_at=utcnow(-3 * 86_400)))
    assert not duties(database, progress, redis_server, retention_days=0).clean_up()
    [kept] = queries.list_jobs(database, ANONYMOUS, PageRequest(10))[0]
    assert kept.id == job.id
    with database.engine.connect() as connection:
        assert list(connection.scalars(sa.select(Batch.id))) == ["batch_1"]


def test_what_is_old_is_cleaned_up(
    database: Database, progress: Progress, redis_server: RedisServer
) -> None:
    for _ in range(3):
        cancellation.cancel(database, ANONYMOUS, submit(database).id)
    workers.register(database, "newest", "localhost", 2, RUNTIME)
    request = Keyed("ann", "k", "1" * 64)
    requests.note_outcome(database, request, status_code=204)
    end_a_batch(database)
    with database.engine.begin() as connection:
        connection.execute(sa.update(Job).values(finished_at=utcnow(-3 * 86_400)))
        connection.execute(sa.update(Worker).values(seen_at=utcnow(-60 * 86_400)))
        connection.execute(sa.update(KeyedRequest).values(created_at=utcnow(-60 * 86_400)))
    process = duties(database, progress, redis_server, retention_days=2)
    while process.clean_up():
        pass
    assert queries.list_jobs(database, ANONYMOUS, PageRequest(1))[0] == []
    assert requests.find_outcome(database, request) is None
    with database.engine.connect() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(Batch)) == 0
        assert list(connection.scalars(sa.select(Worker.id))) == ["newest"], "the newest one stays"
