"""How jobs get into the search index, change there and leave it."""

from __future__ import annotations

from pathlib import Path

import pytest
import sqlalchemy as sa

import migrations
from jobs.database import Database
from jobs.database_engine import begin
from jobs.models import ANONYMOUS, Scope, SearchDocument
from jobs.statements import documents, found_documents, search
from jobs.use_cases import (
    cancellation,
    deletion,
    indexing,
    keys,
    queries,
    reviewing,
    searching,
    submission,
    workers,
)
from jobs.use_cases.reviewing import NewReview
from tests.conftest import RUNTIME, WORKER
from tests.integration.long_history import multiply
from tests.integration.rows import QUESTION
from tests.integration.searches import end, find, index


def test_a_key_finds_jobs_that_were_indexed_before_the_index_had_keys(database: Database) -> None:
    key, _ = keys.create(database, "one", [Scope.ASK])
    keyed, plain = (
        submission.submit(database, "owner", QUESTION, max_queued=10, key=whose)[0]
        for whose in (key, None)
    )
    for job in (keyed, plain):
        cancellation.cancel(database, "owner", job.id)
    assert index(database) == 2
    migrations.migrate(database.engine, "0026")
    migrations.migrate(database.engine)
    assert index(database) == 1, "only a job with a key is indexed again"
    assert find(database, key=key.id) == [keyed.id]


def test_jobs_with_reviews_of_before_are_found_by_them(database: Database) -> None:
    reviewed, _ = end(database), end(database)
    reviewing.add(database, None, reviewed.id, NewReview(critique=-1), reviewer="ann")
    assert index(database) == 2
    migrations.migrate(database.engine, "0027")
    migrations.migrate(database.engine)
    assert index(database) == 1, "only a job with reviews is indexed again"
    assert find(database, critique_rating=-1, reviewer="ann") == [reviewed.id]


def test_a_job_that_has_just_ended_is_found_before_the_duty_runs(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [end(database).id for _ in range(searching.MAX_CAUGHT_UP)]
    assert find(database, "answer") == jobs[::-1]
    later = [end(database).id for _ in range(searching.MAX_CAUGHT_UP + 1)]
    assert find(database, "answer") == jobs[::-1], "many are left to the duty"
    index(database)
    assert find(database, "answer") == [*later[::-1], *jobs[::-1]]
    end(database)

    def refuse(*_: object) -> None:
        raise sa.exc.OperationalError("INSERT", {}, Exception("the disk is full"))

    monkeypatch.setattr(
        indexing, "put", refuse
    )  # A fault: it stands for all that keeps one from writing.
    assert find(database, "answer") == [*later[::-1], *jobs[::-1]]


def test_deleted_jobs_are_not_found(database: Database) -> None:
    jobs = [end(database, question=f"fox {number}") for number in range(3)]
    index(database)
    deletion.delete(database, ANONYMOUS, jobs[1].id)
    assert find(database, "fox") == [jobs[2].id, jobs[0].id]
    with database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count(SearchDocument.id))) == 2
    if database.engine.dialect.name == "sqlite":
        with database.write() as connection:
            check = "INSERT INTO search_index (search_index) VALUES ('integrity-check')"
            connection.exec_driver_sql(check)


def test_a_change_is_indexed_even_if_it_comes_while_the_job_is_indexed(database: Database) -> None:
    job = end(database, question="fox")
    prepared = indexing.prepare(database)
    with database.write() as connection:
        documents.reindex(connection, job.id)
    assert indexing.put(database, prepared) == 1
    assert indexing.any_pending(database)
    assert index(database) == 1
    assert find(database, "fox") == [job.id]
    with database.write() as connection:
        documents.reindex(connection, job.id, forget=True)
    with database.read() as connection:
        document_id = found_documents.id_of(connection, None, job.id)
        assert document_id is not None
        assert not search.words_of(connection, [document_id]), "it is forgotten at once"
    index(database)
    assert find(database, "fox") == [job.id]


def test_sqlite_merges_its_index_apart_from_putting_documents_into_it(tmp_path: Path) -> None:
    database = Database(f"sqlite:///{tmp_path / 'jobs.sqlite3'}")
    migrations.migrate(database.engine)
    workers.register(database, WORKER, "localhost", 1, RUNTIME)

    def segments() -> int:
        # A row of this table is the first page of a segment's leaf that has a term.
        with database.read() as connection:
            return int(
                connection.exec_driver_sql(
                    "SELECT count(DISTINCT segid) FROM search_index_idx"
                ).scalar_one()
            )

    for number in range(6):
        end(database, question=f"word{number}")
        assert indexing.put(database, indexing.prepare(database)) == 1
    assert segments() == 6
    indexing.merge(database)
    assert segments() < 4
    assert len(find(database, "word*")) == 6
    database.close()


def test_two_processes_index_a_job_once(database: Database) -> None:
    end(database)
    first, second = indexing.prepare(database), indexing.prepare(database)
    assert indexing.put(database, first) == 1
    assert indexing.put(database, second) == 0
    deleted = end(database)
    prepared = indexing.prepare(database)
    deletion.delete(database, ANONYMOUS, deleted.id)
    assert indexing.put(database, prepared) == 0


def test_jobs_of_one_moment_have_documents_of_their_own(database: Database) -> None:
    template = end(database)
    with database.engine.begin() as connection:
        begin(connection, write=True)
        # Ids of this form say nothing about the order within a moment.
        multiply(connection, "jobs", f"old.id = '{template.id}'", 5, id="'resp_c' || n.i")
    assert index(database) == 6
    copies = {f"resp_c{number}" for number in range(1, 6)}
    assert set(find(database, "why", limit=2)) == {template.id, *copies}


def test_jobs_of_an_earlier_schema_are_indexed(database: Database) -> None:
    job = end(database, question="fox")
    migrations.migrate(database.engine, "0011")
    migrations.migrate(database.engine)
    assert index(database) == 1
    assert find(database, "fox") == [job.id]


def test_a_very_long_text_is_indexed(database: Database) -> None:
    question = " ".join(f"{'é' * 60}{number}" for number in range(30_000))
    job = end(database, question=f"fox {question} vixen")
    index(database)
    assert find(database, "fox") == [job.id]
    assert queries.get_job(database, None, job.id).unindexed == 0
