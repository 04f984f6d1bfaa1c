"""Reviews: they stay as they were given, the log has them, and they say what to review next."""

from __future__ import annotations

import datetime as dt
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.database import Database
from jobs.enums import ANY
from jobs.errors import JobNotFoundError, NotEndedError
from jobs.models import ANONYMOUS, Job, LogEntry, Review
from jobs.protocol.history import history
from jobs.search.filters import Filters
from jobs.statements import log
from jobs.use_cases import (
    deletion,
    queries,
    review_agreement,
    review_queue,
    reviewing,
    sealing,
    searching,
)
from jobs.use_cases.log_signing import Signing
from jobs.use_cases.review_queue import Mark, NextReview
from jobs.use_cases.reviewing import NewReview
from jobs.use_cases.verdicts import Verdict
from tests.integration.rows import submit
from tests.integration.sealed import end, seal
from tests.integration.tampering import change, is_as_recorded, new_value, tamper

FULL = NewReview(
    critique=1,
    regeneration=-1,
    corrected_answer="Because of the air.\0",
    tags=("physics", "wrong"),
    note="See Rayleigh: δ ∝ λ⁻⁴.",
)
#: Columns that say nothing about a review, but which request added it.
OF_THE_REQUEST = ("idempotency_key", "request_digest")


def review(database: Database, job: Job, reviewer: str = "ann", **changes: Any) -> str:
    new = NewReview(**changes) if changes else FULL
    return reviewing.add(database, None, job.id, new, reviewer=reviewer)


def told(database: Database, job: Job) -> dict[str, Any]:
    return history(queries.get_job(database, None, job.id, with_history=True))


def entries_of(database: Database, job: Job) -> list[dict[str, Any]]:
    with database.read() as connection:
        size = log.state(connection).size
        rows = log.list_entries(connection, 0, size)
    return [json.loads(row.entry) for row in rows if row.job_id == job.id]


def test_a_review_is_shown_as_it_was_given_and_gets_an_entry(database: Database) -> None:
    job = end(database)
    seal(database)
    review_id = review(database, job)
    review(database, job, regeneration=1)
    first, second = told(database, job)["reviews"]
    assert (first["id"], first["number"], first["reviewer"]) == (review_id, 0, "ann")
    assert (first["critique"], first["regeneration"]) == (1, -1)
    assert first["corrected_answer"] == "Because of the air.\0"
    assert (first["tags"], first["note"]) == (["physics", "wrong"], "See Rayleigh: δ ∝ λ⁻⁴.")
    assert (second["number"], second["note"], second["tags"]) == (1, None, [])
    assert is_as_recorded(database).reviews == 0
    assert seal(database) == 2
    entry = entries_of(database, job)[1]
    assert set(entry) == {"type", "at", "entry", "digest"}
    assert (entry["type"], entry["entry"]) == ("helixq/review/v1", 0)
    shown = told(database, job)["reviews"][0]
    assert (shown["digest"], shown["log"]["index"]) == (entry["digest"], 1)
    report = is_as_recorded(database)
    assert (report.jobs, report.reviews) == (1, 2)
    assert queries.get_job(database, None, job.id).rating == 1


def test_only_ended_jobs_are_reviewed_and_only_ones_own(database: Database) -> None:
    waiting, job = submit(database), end(database)
    with pytest.raises(NotEndedError):
        review(database, waiting)
    for job_id in ("resp_none", job.id):
        with pytest.raises(JobNotFoundError):
            reviewing.add(database, "somebody", job_id, FULL, reviewer="ann")


def test_reviews_at_once_are_numbered(database: Database) -> None:
    job = end(database)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda n: review(database, job, f"r{n}", critique=0), range(12)))
    assert [r["number"] for r in told(database, job)["reviews"]] == list(range(12))


def test_a_review_waits_for_the_entry_of_its_job(database: Database) -> None:
    job = end(database)
    review(database, job)
    assert [one.kind for one in sealing.prepare(database, history)] == ["job"]
    assert (seal(database), seal(database), seal(database)) == (1, 1, 0)
    assert is_as_recorded(database).reviews == 1


def test_processes_that_seal_at_once_seal_a_review_once(database: Database) -> None:
    job = end(database)
    seal(database)
    for number in range(10):
        review(database, job, f"r{number}")
    prepared = [sealing.prepare(database, history) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        counts = list(pool.map(lambda found: sealing.append(database, found, Signing()), prepared))
    assert sum(counts) == 10
    assert is_as_recorded(database).reviews == 10


def test_a_review_whose_job_is_deleted_meanwhile_is_not_sealed(database: Database) -> None:
    job, other = end(database), end(database)
    seal(database)
    review(database, job), review(database, other)
    prepared = sealing.prepare(database, history)
    deletion.delete(database, None, job.id)
    assert sealing.append(database, prepared, Signing()) == 2, "a review and the deletion"
    report = is_as_recorded(database)
    assert (report.jobs, report.deleted, report.reviews) == (1, 1, 1)


def test_the_database_refuses_to_change_or_delete_a_review(database: Database) -> None:
    job = end(database)
    seal(database)
    review(database, job)
    statements: list[Any] = [sa.delete(Review)]
    dialect = database.engine.dialect
    for sealed in (False, True):
        if sealed:
            seal(database)
        for column in Review.__table__.columns:
            if column.name in ("id", "job_id", *OF_THE_REQUEST):
                continue
            if column.name == "log_index" and not sealed:
                continue
            value = sa.text(f"UPDATE reviews SET {column.name} = {new_value(column, dialect)}")
            statements.append(value)
        for statement in statements:
            with (
                pytest.raises(sa.exc.IntegrityError, match="a review never changes"),
                database.write() as connection,
            ):
                connection.execute(statement)
    deletion.delete(database, None, job.id)
    with database.read() as connection:
        assert connection.scalar(sa.select(sa.func.count(Review.id))) == 0


def test_a_change_of_any_column_of_a_review_is_noticed(database: Database) -> None:
    job, other = end(database), end(database)
    seal(database)
    review_id = review(database, job)
    review(database, job, "bob", critique=1)
    seal(database)
    for column in Review.__table__.columns:
        if column.name in OF_THE_REQUEST:
            continue
        value = new_value(column, database.engine.dialect)
        if column.name == "job_id":
            value = f"'{other.id}'"
        elif column.name == "number":
            value = "7"  # It must be one that the job has not.
        said = change(
            database,
            f"UPDATE reviews SET {column.name} = {value} WHERE id = '{review_id}'",
        )
        assert job.id in said, (column.name, said)
        assert "review" in said, (column.name, said)
    assert is_as_recorded(database).reviews == 2


def test_removed_swapped_and_added_reviews_are_named(database: Database) -> None:
    job = end(database)
    seal(database)
    first, second, last = (review(database, job, name) for name in ("ann", "bob", "cat"))
    seal(database)
    index = "log_index = CASE log_index WHEN 1 THEN 2 WHEN 2 THEN 1 ELSE log_index END"
    of = f"WHERE id = '{first}'"
    assert change(database, f"DELETE FROM reviews WHERE id = '{last}'") == (
        f"a review of job {job.id} (entry 3) was removed"
    )
    assert "removed or reordered" in change(database, f"DELETE FROM reviews {of}")
    assert change(database, f"UPDATE reviews SET {index}") == (
        f"review {first} of job {job.id} (entry 1) was reordered: it claims entry 2"
    )
    assert change(database, f"UPDATE reviews SET note = 'x' {of}") == (
        f"review {first} of job {job.id} (entry 1) was changed"
    )
    renumbered = (
        "UPDATE reviews SET number = number - 10 WHERE number < 2",
        "UPDATE reviews SET number = -9 - number WHERE number < 0",
    )
    assert change(database, *renumbered) == (
        f"review {first} of job {job.id} (entry 1) was changed"
    )
    columns = [c.name for c in Review.__table__.columns if c.name not in ("id", "number")]
    names = ", ".join(columns)
    copied = (
        f"INSERT INTO reviews (id, number, {names}) SELECT 'rev_x', 3, {names} FROM reviews {of}"
    )
    assert "rev_x" in change(database, copied)
    added = review(database, job, "dan")
    old = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    said = tamper(database, sa.update(Review).where(Review.id == added).values(created_at=old))
    assert said.startswith(f"review {added} of job {job.id} was added")
    assert second not in said


def test_changes_of_entries_of_reviews_are_noticed(database: Database) -> None:
    job, other = end(database), end(database)
    seal(database)
    review(database, job)
    seal(database)
    entry = LogEntry.entry_index == 2
    assert "kind of entry 2" in tamper(
        database, sa.update(LogEntry).where(entry).values(kind="job")
    )
    moved = sa.update(LogEntry).where(entry).values(kind="review", job_id=other.id)
    assert tamper(database, moved) == f"entry 2, of job {other.id}, is of another job's"


def test_the_rating_of_a_job_is_that_of_its_last_review(database: Database) -> None:
    rated, unrated, other = (end(database) for _ in range(3))
    review(database, rated, regeneration=-1)
    review(database, rated, "bob", regeneration=0)
    review(database, rated, "cat", critique=1)
    review(database, other, critique=1)

    def listed(rating: int | None) -> list[str]:
        page = searching.search(database, ANONYMOUS, Filters(rating=rating), limit=10)
        return [each.job.id for each in page.jobs]

    assert (listed(0), listed(-1), listed(1)) == ([rated.id], [], [])
    assert listed(None) == [other.id, unrated.id]
    assert len(listed(ANY)) == 3
    seal(database), seal(database)
    said = change(database, "UPDATE jobs SET rating = 1")
    assert "its rating is not that of its last review" in said


# What to review next.


def queue(database: Database, kind: Any = "unreviewed", **options: Any) -> list[str]:
    options = {"owner": None, "reviewer": "ann", "seed": 1, "limit": 100, **options}
    return [job.id for job, _ in review_queue.queue(database, kind=kind, **options)]


def test_the_queue_has_a_sample_with_those_first_that_nobody_reviewed(database: Database) -> None:
    jobs = [end(database).id for _ in range(12)]
    submit(database)
    sample = queue(database)
    assert sorted(sample) == sorted(jobs)
    assert sample != jobs
    assert queue(database) == sample, "the seed decides"
    assert queue(database, reviewer="bob") == sample, "and not who asks"
    assert queue(database, seed=2) != sample
    assert queue(database, limit=3) == sample[:3]
    for job_id, reviewer in ((sample[0], "ann"), (sample[1], "bob"), (sample[5], "bob")):
        reviewing.add(database, None, job_id, FULL, reviewer=reviewer)
    rest = [job for job in sample[2:] if job != sample[5]]
    assert queue(database) == [*rest, sample[1], sample[5]]
    assert queue(database, reviewer="bob") == [*rest, sample[0]]
    assert queue(database, owner="somebody") == []
    assert queue(database, since=dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)) == []


def test_turns_go_through_the_sample_once_whoever_else_reviews(database: Database) -> None:
    jobs = [end(database).id for _ in range(6)]

    def rate(job_id: str, reviewer: str, rating: int) -> None:
        new = NewReview(regeneration=rating)
        reviewing.add(database, None, job_id, new, reviewer=reviewer)

    rate(jobs[0], "bob", 1)
    sample = queue(database)
    assert sample[-1] == jobs[0]

    def turn(after: Mark | None = None, **options: Any) -> NextReview:
        options = {"owner": None, "reviewer": "ann", "kind": "unreviewed", "seed": 1, **options}
        return review_queue.next_review(database, after=after, **options)

    assert turn() == NextReview(Mark(sample[0], False), 6, 0, 6, 0, 1)
    seen = [turn().next]
    while (following := turn(seen[-1]).next) is not None:
        seen.append(following)
    assert [mark and mark.job_id for mark in seen] == sample
    assert seen[-1] == Mark(jobs[0], True)
    # Who was skipped and who reviewed it meanwhile change nothing for the others.
    first = Mark(sample[0], False)
    rate(sample[0], "bob", 1)
    rate(sample[1], "ann", 1)
    assert turn(first) == NextReview(Mark(sample[2], False), 5, 0, 6, 1, 3)
    assert turn(owner="somebody") == NextReview(None, 0, 0, 0, 0, 0)

    assert turn(kind="disagreements").next is None
    for job_id in sample[2:4]:
        rate(job_id, "ann", 1)
        rate(job_id, "bob", -1)
    first_turn = turn(kind="disagreements")
    assert first_turn == NextReview(Mark(sample[2], False), 2, 0, 2, 2, 2)
    assert turn(first_turn.next, kind="disagreements").next == Mark(sample[3], False)
    assert turn(Mark(sample[3], False), kind="disagreements").next is None


def test_the_queue_has_jobs_that_reviewers_disagree_on(database: Database) -> None:
    agreed, split, settled, alone = (end(database) for _ in range(4))
    for name in ("ann", "bob"):
        review(database, agreed, name, critique=1, regeneration=1)
    review(database, split, "ann", regeneration=1)
    review(database, split, "bob", critique=1, regeneration=0)
    review(database, settled, "ann", regeneration=1)
    review(database, settled, "bob", regeneration=-1)
    review(database, settled, "bob", regeneration=1)
    review(database, alone, "ann", regeneration=1)
    review(database, alone, "ann", regeneration=-1)
    [(job, verdicts)] = review_queue.queue(
        database, None, reviewer="ann", kind="disagreements", seed=0, limit=9
    )
    assert job.id == split.id
    assert verdicts == {"ann": Verdict(None, 1), "bob": Verdict(1, 0)}


def test_agreement_is_that_of_the_last_reviews(database: Database) -> None:
    assert review_agreement.agreement(database, None)["critique"].measure is None
    jobs = [end(database) for _ in range(4)]
    review(database, jobs[0], "ann", regeneration=-1)
    for job, first, second in zip(jobs, (1, 1, 0, 0), (1, 1, 0, 1), strict=True):
        review(database, job, "ann", critique=0, regeneration=first)
        review(database, job, "bob", critique=0, regeneration=second)
    found = review_agreement.agreement(database, None)
    assert found["regeneration"] == ("cohen_kappa", 0.5, ["ann", "bob"], 4)
    assert found["critique"] == ("cohen_kappa", None, ["ann", "bob"], 4), "all are the same"
    review(database, jobs[0], "cat", regeneration=1)
    three = review_agreement.agreement(database, None)["regeneration"]
    assert (three.measure, three.reviewers) == ("krippendorff_alpha", ["ann", "bob", "cat"])
    assert three.value is not None
    assert 0 < three.value < 1
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=1)
    assert review_agreement.agreement(database, None, since=later)["regeneration"].jobs == 0
    assert review_agreement.agreement(database, "somebody")["regeneration"].jobs == 0
