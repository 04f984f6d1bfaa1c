"""Histories that were exported are restored in another database, as they were."""

from __future__ import annotations

import gc
import io
import json
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.database import Database
from jobs.errors import ErasedError
from jobs.formats.compression import Compression
from jobs.formats.writing import to_json
from jobs.importer import ImportRefusedError, Report, read_histories
from jobs.models import Attempt, Job, Worker, WorkerState
from jobs.pipeline import Sampling, Turn
from jobs.protocol.history import history
from jobs.statements import log
from jobs.tlog.entry import parse_entry
from jobs.tlog.record import review_digest, review_texts, texts
from jobs.use_cases import (
    cancellation,
    deletion,
    indexing,
    proving,
    queries,
    retention,
    retrying,
    reviewing,
    stages,
    statistics,
    verifying,
    workers,
)
from jobs.use_cases.replaying import replay_of
from jobs.use_cases.reviewing import NewReview
from jobs.use_cases.stages import Output
from tests.conftest import RUNTIME, WORKER
from tests.integration.moving import (
    end_one_here,
    erase,
    export,
    histories,
    load,
    read,
    review,
    seal_all,
)
from tests.integration.rows import OUTPUT, claim, submit
from tests.integration.sealed import end, seal


def some_jobs(database: Database) -> None:
    """End jobs in every way, with all that a history can have."""
    end(database, question="Why?\0␛\u2028é𝄞", metadata={"team": "blue"}, input_items=[{"a": [1.5]}])
    sampling = Sampling(seed=7, stop=("\n\0", "☕"))
    end(
        database,
        batch_id="batch_1",
        custom_id="line-1",
        options={"x": None},
        replay_of="resp_0",
        sampling=sampling,
    )
    cancelled = submit(database)
    claimed = claim(database, cancelled)
    cancellation.cancel(database, None, cancelled.id)
    stages.keep_partial(
        database, claimed, replace(OUTPUT, text="Half a", finish_reason="cancelled")
    )
    lost = submit(database, rounds=2, turns=[Turn("user", "How?")])
    stages.release(database, claim(database, lost), "it stopped")
    for index in range(5):
        assert stages.record(database, claim(database, lost, index), OUTPUT)
    failed = end(database)
    with database.write() as connection:
        restart = {
            "run": 2,
            "at": "2026-01-02T03:04:05.678+00:00",
            "model": "ef",
            "reason": "gone",
        }
        connection.execute(
            sa.update(Job)
            .where(Job.id == failed.id)
            .values(
                status="failed",
                error_code="server_error",
                error_message="It\0.",
                restarts=[restart],
            )
        )
    seal_all(database)
    erase(database, lost.id, "/turns", "/attempts/1/output")
    review(database, failed.id, critique=1, corrected_answer="Because.")
    review(database, failed.id)
    review(database, lost.id, note="Who?", tags=("x",))
    erase(database, lost.id, "/reviews/0/tags")
    review(database, cancelled.id)
    erase(database, cancelled.id)
    seal_all(database)


def test_long_histories_take_little_memory(
    database: Database, elsewhere: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        job = submit(database, question=f"{number}? " + "x" * 50_000)
        for index in range(3):
            stages.record(database, claim(database, job, index), replace(OUTPUT, text="é" * 20_000))
    seal_all(database)
    data = export(database)

    def peak() -> int:
        """Return the maximum memory of importing all, and forget them."""
        gc.collect()
        tracemalloc.start()
        try:
            assert load(data, elsewhere).imported == 12
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            with elsewhere.write() as connection:
                for table in (Attempt, Job):
                    connection.execute(sa.delete(table))

    together = peak()
    monkeypatch.setattr("jobs.importer.BATCH_BYTES", len(data) // 12)
    assert peak() < together / 2


def test_a_history_from_before_stop_strings_is_restored(
    database: Database, elsewhere: Database
) -> None:
    end(database)
    seal_all(database)
    line = json.loads(export(database))
    assert line.pop("stop") is None
    [key] = proving.list_keys(database)
    assert load(json.dumps(line).encode(), elsewhere, key).imported == 1
    assert histories(elsewhere) == histories(database)


def test_histories_are_restored_with_their_proofs(database: Database, elsewhere: Database) -> None:
    some_jobs(database)
    submit(database)
    data, [key] = export(database), proving.list_keys(database)
    assert load(data, elsewhere, key) == Report(5, 0, 1, {key.name})
    own = end_one_here(elsewhere)
    assert verifying.verify(elsewhere, history).unsealed == 6
    assert seal(elsewhere) == 6, "jobs come first"
    assert seal(elsewhere) == 4 + 3, "and reviews and erasures follow them"
    restored = [h for h in histories(elsewhere) if h["id"] != own]
    assert restored == [h for h in histories(database) if h["digest"]]
    for line in map(json.loads, data.splitlines()[:5]):
        proof = proving.origin_proof(elsewhere, None, line["id"])
        assert proof.text == line["proof"]
        assert proof.extra is not None
        proof.verify(proof.extra, [key])
        [own_key] = proving.list_keys(elsewhere)
        here = proving.prove(elsewhere, None, line["id"])
        assert here.extra is not None
        here.verify(here.extra, [own_key])
        assert parse_entry(here.extra)["type"] == "helixq/import/v1"
        job = queries.get_job(elsewhere, None, line["id"], with_history=True)
        assert history(job)["origin"] == {"log": key.name, "index": line["log"]["index"]}
    found = verifying.verify(elsewhere, history)
    assert (found.jobs, found.reviews, found.erasures, found.entries) == (6, 4, 3, 13)


def test_an_import_may_be_repeated_and_passed_on(database: Database, elsewhere: Database) -> None:
    some_jobs(database)
    data, [first] = export(database), proving.list_keys(database)
    load(data, elsewhere)
    assert load(data, elsewhere) == Report(0, 5, 0, {first.name})
    counts = []
    for side in (database, elsewhere):
        indexing.put(side, indexing.prepare(side))
        counts.append(statistics.read(side, None, statistics.Query()).total.counts)
    assert counts[0] == counts[1]
    assert (counts[0]["jobs"], counts[0]["reviewed"]) == (5, 3)
    assert load(data, database) == Report(0, 5, 0, {first.name}), "also where they ended"
    seal_all(elsewhere)
    passed_on, [second] = export(elsewhere), proving.list_keys(elsewhere)
    assert [
        line.checked and (line.checked.signed, line.checked.origin_signed)
        for line in read_histories(io.BytesIO(passed_on), [second])
    ] == [(True, False)] * 5
    for line in read_histories(io.BytesIO(passed_on), [first, second]):
        assert line.checked is not None
        assert line.checked.origin_signed
        assert line.checked.origin.log == first.name


def test_a_review_may_be_older_than_those_that_were_given_here(
    database: Database, elsewhere: Database
) -> None:
    job = end(database)
    review(database, job.id)
    seal_all(database)
    own = end_one_here(elsewhere)
    seal(elsewhere)
    review(elsewhere, own)
    seal(elsewhere)
    moved = json.loads(export(database))
    moved["reviews"][0]["created_at"] = "2020-01-02T03:04:05.678Z"
    salt = bytes.fromhex(moved["reviews"][0]["log"]["salt"])
    moved["reviews"][0]["digest"] = review_digest(job.id, moved["reviews"][0], salt)
    moved["review_proofs"] = [None]  # As if it was exported before the review had its entry.
    load(to_json(moved).encode(), elsewhere)
    verifying.verify(elsewhere, history)
    assert seal(elsewhere) == 1
    assert verifying.verify(elsewhere, history).reviews == 1, "before the review has its entry"
    seal(elsewhere)
    assert verifying.verify(elsewhere, history).reviews == 2


def test_an_imported_job_is_reviewed_erased_and_replayed_as_any(
    database: Database, elsewhere: Database
) -> None:
    jobs = [end(database) for _ in range(3)]
    review(database, jobs[0].id)
    seal_all(database)
    erase(database, jobs[1].id, "/question")
    seal(database)
    whole = export(database)
    load(whole, elsewhere)
    seal_all(elsewhere)
    review(elsewhere, jobs[0].id, regeneration=1)
    assert "/reviews/0/note" in erase(elsewhere, jobs[0].id)
    assert "/system" in erase(elsewhere, jobs[1].id, "/system")
    seal_all(elsewhere)
    found = verifying.verify(elsewhere, history)
    assert (found.jobs, found.reviews, found.erasures) == (3, 2, 3)
    kept = queries.get_job(elsewhere, None, jobs[2].id, with_history=True)
    assert replay_of(kept).question == jobs[2].question
    for job in jobs[:2]:
        with pytest.raises(ErasedError):
            replay_of(queries.get_job(elsewhere, None, job.id, with_history=True))
    [first], [second] = proving.list_keys(database), proving.list_keys(elsewhere)
    lines = list(read_histories(io.BytesIO(export(elsewhere)), [first, second]))
    assert [bool(line.checked and line.checked.erased) for line in lines] == [True, True, False]
    assert all(line.checked and line.checked.origin_signed for line in lines)
    # What was added here is kept, and what was erased here does not come back.
    before = histories(elsewhere)
    assert load(whole, elsewhere) == Report(0, 3, 0, {first.name})
    assert histories(elsewhere) == before
    # And nothing is added to a job that is there.
    says = rf"line 1: {jobs[0].id} is there already, and lacks the file's `/reviews/1`"
    with pytest.raises(ImportRefusedError, match=says):
        load(export(elsewhere), database)
    erase(elsewhere, jobs[2].id, "/metadata")
    seal_all(elsewhere)
    third = export(elsewhere).splitlines()[2]
    with pytest.raises(ImportRefusedError, match="lacks the file's `/erasures/0`"):
        load(third, database)


def test_deleting_an_imported_job_is_recorded_and_final(
    database: Database, elsewhere: Database
) -> None:
    job = end(database)
    seal(database)
    data = export(database)
    load(data, elsewhere)
    seal(elsewhere)
    deletion.delete(elsewhere, None, job.id)
    with pytest.raises(
        ImportRefusedError, match=rf"line 1: {job.id} was deleted from this database"
    ):
        load(data, elsewhere)
    seal(elsewhere)
    assert verifying.verify(elsewhere, history).deleted == 1


def test_a_retried_job_is_restored_with_its_earlier_ends(
    database: Database, elsewhere: Database
) -> None:
    """Its earlier ends have entries in the first log alone; what was added after them names these entries."""
    end(database)
    job = submit(database)
    assert stages.record(database, claim(database, job), OUTPUT)
    assert stages.fail(database, claim(database, job, 1), "server_error", "it broke")
    seal_all(database)
    review(database, job.id)
    seal_all(database)
    retrying.retry(database, None, job.id)
    for index in (1, 2):
        assert stages.record(database, claim(database, job, index), OUTPUT)
    seal_all(database)
    review(database, job.id, critique=1)
    seal_all(database)
    data, [key] = export(database), proving.list_keys(database)
    [retry] = json.loads(data.splitlines()[1])["retries"]
    assert (retry["code"], retry["entry"]) == ("server_error", 1)
    end_one_here(elsewhere)
    seal(elsewhere)
    assert load(data, elsewhere, key).imported == 2
    seal_all(elsewhere)
    assert [h for h in histories(elsewhere) if h["attempts"][0]["worker"]["id"] == WORKER] == (
        histories(database)
    )
    report = verifying.verify(elsewhere, history)
    assert (report.jobs, report.reviews, report.retried) == (3, 2, 0)
    assert load(data, elsewhere, key).present == 2
    [line] = [line for line in read(export(elsewhere)) if line.history["id"] == job.id]
    assert line.checked is not None
    assert line.checked.unproved == 0
    # Entry 1 of this log is another job's, which may be deleted at the same time.
    deleted = [h["id"] for h in map(json.loads, data.splitlines())]
    places = [queries.get_job(elsewhere, None, job_id).log_index for job_id in deleted]
    assert places == [1, 2]
    for job_id in deleted:
        deletion.delete(elsewhere, None, job_id)
    assert seal(elsewhere) == 2, "one deletion for each entry that this log has of them"
    with elsewhere.read() as connection:
        [*_, first, second] = log.list_entries(connection, 0, 100)
    assert [(parse_entry(row.entry)["entry"], row.job_id) for row in (first, second)] == [
        *zip(places, deleted, strict=True)
    ]
    assert verifying.verify(elsewhere, history).deleted == 2


def test_workers_of_imported_jobs_serve_nothing_and_go_with_them(
    database: Database, elsewhere: Database
) -> None:
    end(database), end(database)
    seal(database)
    load(export(database), elsewhere)
    assert workers.list_serving(elsewhere) == []
    with elsewhere.read_session() as session:
        [worker] = session.scalars(sa.select(Worker))
    assert (worker.id, worker.state) == (WORKER, WorkerState.STOPPED)
    workers.register(elsewhere, "worker-here", "localhost", 1, RUNTIME)
    with elsewhere.write() as connection:
        connection.execute(sa.delete(Job))
    retention.delete_workers(elsewhere)
    with elsewhere.read_session() as session:
        assert [worker.id for worker in session.scalars(sa.select(Worker))] == ["worker-here"]


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


REVIEW = st.builds(
    NewReview,
    critique=st.sampled_from([None, -1, 0, 1]),
    regeneration=st.sampled_from([None, -1, 0, 1]),
    corrected_answer=st.none() | TEXT,
    tags=st.lists(TEXT, max_size=2).map(tuple),
    note=st.none() | TEXT,
)


@settings(
    max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    jobs=st.lists(
        st.tuples(TEXT, TEXT, st.dictionaries(TEXT, JSON, max_size=2), st.lists(TEXT, min_size=3)),
        min_size=1,
        max_size=3,
    ),
    compression=st.sampled_from(Compression),
    reviews=st.lists(st.tuples(st.integers(0, 2), TEXT, REVIEW), max_size=3),
    data=st.data(),
)
def test_any_history_is_restored(
    database: Database,
    elsewhere: Database,
    jobs: list[tuple[str, str, dict[str, Any], list[str]]],
    compression: Compression,
    reviews: list[tuple[int, str, NewReview]],
    data: st.DataObject,
) -> None:
    ids = []
    for question, system, options, outputs in jobs:
        job = submit(
            database,
            question=question,
            system=system,
            options=options,
            input_items=[options],
            turns=[Turn("user", system)],
            sampling=Sampling(seed=7, stop=tuple(outputs[3:])),
        )
        ids.append(job.id)
        for index in range(3):
            text = outputs[index]
            output = Output(text, [len(text)], 1, 1, "stop", 8, 0.0)
            assert stages.record(database, claim(database, job, index), output)
    for number, reviewer, new in reviews:
        job_id = ids[number % len(ids)]
        reviewing.add(database, None, job_id, new, reviewer=reviewer)
    seal(database)
    for job_id in data.draw(st.lists(st.sampled_from(ids), max_size=3)):
        told = history(queries.get_job(database, None, job_id, with_history=True))
        pointers = sorted({**texts(told), **review_texts(told)})
        erase(database, job_id, *data.draw(st.lists(st.sampled_from(pointers), max_size=3)))
    if data.draw(st.booleans()):
        seal(database)
    file, [key] = export(database, compression), proving.list_keys(database)
    report = load(file, elsewhere, key)
    assert report.imported == len(jobs)
    seal_all(elsewhere)
    assert histories(elsewhere) == histories(database)
    verified = verifying.verify(elsewhere, history)
    assert verified.jobs + verified.reviews + verified.erasures == verified.entries
    [own] = proving.list_keys(elsewhere)
    lines = read(export(elsewhere, compression), own, key)
    assert all(line.checked and line.checked.origin_signed for line in lines)
    assert not any(line.checked and line.checked.unproved for line in lines)
