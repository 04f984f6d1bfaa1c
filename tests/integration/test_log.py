"""Ended jobs get into the log once, in order, whatever happens; and the log can be verified by others."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
import tracemalloc
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from aics_tlog import verify_consistency
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import migrations
from jobs.database import Database
from jobs.errors import JobNotFoundError, NotSealedError
from jobs.models import ANONYMOUS, Job, Review
from jobs.protocol.history import history
from jobs.search.filters import Filters
from jobs.statements import log, log_checkpoints, whole_jobs
from jobs.tlog import merkle
from jobs.tlog.checkpoint import open_checkpoint
from jobs.tlog.proof import Proof
from jobs.tlog.tiles import Tile
from jobs.use_cases import (
    cancellation,
    deletion,
    exporting,
    proving,
    queries,
    retention,
    sealing,
    stages,
)
from jobs.use_cases.log_signing import Signing
from tests.integration.moving import review
from tests.integration.rows import OUTPUT, claim, submit
from tests.integration.sealed import end, seal
from tests.integration.tampering import drop_triggers, is_as_recorded, tamper
from tests.unit.tlog import rfc6962


def entries(database: Database) -> list[bytes]:
    """Return the log's entries, read from its bundles as an outsider does."""
    with database.read() as connection:
        size = log.state(connection).size
    found: list[bytes] = []
    for index in range(0, size, 256):
        bundle = proving.get_bundle(database, Tile(index // 256, min(256, size - index)))
        assert bundle is not None
        while bundle:
            length = int.from_bytes(bundle[:2])
            found.append(bundle[2 : 2 + length])
            bundle = bundle[2 + length :]
    return found


def checkpoint_of(database: Database) -> tuple[int, bytes]:
    """Return size and root of the newest checkpoint, read by the words of its specification."""
    note = proving.get_checkpoint(database)
    assert note is not None
    checkpoint = open_checkpoint(note, proving.list_keys(database))
    return checkpoint.size, checkpoint.root


def test_an_ended_job_gets_an_entry_that_others_can_check(database: Database) -> None:
    waiting, job = submit(database), end(database)
    assert seal(database) == 1
    assert seal(database) == 0
    told = history(queries.get_job(database, ANONYMOUS, job.id, with_history=True))
    [entry] = entries(database)
    said = json.loads(entry)
    assert (said["type"], said["digest"]) == ("helixq/job/v1", told["digest"])
    assert told["log"]["index"] == 0
    proof = Proof.parse(proving.prove(database, ANONYMOUS, job.id).text)
    assert proof.extra == entry
    assert proof.verify(entry, proving.list_keys(database)).size == 1
    assert (
        history(queries.get_job(database, ANONYMOUS, waiting.id, with_history=True))["log"] is None
    )
    with pytest.raises(NotSealedError, match="once the job has ended"):
        proving.prove(database, ANONYMOUS, waiting.id)
    with pytest.raises(JobNotFoundError):
        proving.prove(database, "somebody", job.id)


def test_every_entry_is_proved_by_rfc_6962_alone(database: Database) -> None:
    jobs = []
    for count in (1, 2, 5):
        jobs += [end(database) for _ in range(count)]
        assert seal(database) == count
    leaves = [hashlib.sha256(b"\0" + entry).digest() for entry in entries(database)]
    size, root = checkpoint_of(database)
    assert (size, root) == (8, rfc6962.mth(leaves))
    for index, job in enumerate(jobs):
        proof = proving.prove(database, None, job.id)
        assert proof.index == index
        assert rfc6962.root_of_path(leaves[index], index, size, list(proof.hashes)) == root


def test_an_entry_reveals_nothing_about_its_job(database: Database) -> None:
    end(database, question="Why?"), end(database, question="Why?")
    seal(database)
    first, second = (json.loads(entry) for entry in entries(database))
    assert set(first) == {"type", "at", "digest"}
    assert first["digest"] != second["digest"]


def test_a_job_that_awaits_its_partial_text_is_sealed_with_it(database: Database) -> None:
    job = submit(database)
    claimed = claim(database, job)
    cancellation.cancel(database, ANONYMOUS, job.id)
    assert queries.get_job(database, ANONYMOUS, job.id).awaits_partial_text
    assert seal(database) == 0
    with pytest.raises(NotSealedError, match="within seconds"):
        proving.prove(database, ANONYMOUS, job.id)
    stages.keep_partial(database, claimed, OUTPUT)
    assert seal(database) == 1
    assert is_as_recorded(database).jobs == 1


def test_checkpoints_are_consistent_with_all_earlier_ones(database: Database) -> None:
    for count in (1, 3, 2, 4):
        for _ in range(count):
            end(database)
        seal(database)
    leaves = [merkle.leaf_hash(entry) for entry in entries(database)]
    with database.read() as connection:
        stored = log_checkpoints.list_checkpoints(connection, 0, 100)
    opened = [open_checkpoint(row.note, proving.list_keys(database)) for row in stored]
    assert [checkpoint.size for checkpoint in opened] == [1, 4, 6, 10]
    for old in opened:
        for new in opened:
            if old.size <= new.size:
                proof = rfc6962.proof(old.size, leaves[: new.size])
                assert verify_consistency(old.size, new.size, old.root, new.root, proof)


def test_processes_that_seal_at_once_make_one_log(database: Database) -> None:
    jobs = {end(database).id for _ in range(40)}
    prepared = [sealing.prepare(database, history, limit=40) for _ in range(4)]
    with ThreadPoolExecutor(4) as pool:
        counts = list(pool.map(lambda found: sealing.append(database, found, Signing()), prepared))
    assert sum(counts) == 40
    report = is_as_recorded(database)
    assert (report.entries, report.jobs) == (40, 40)
    with database.read() as connection:
        assert {row.job_id for row in log.list_entries(connection, 0, 40)} == jobs


def test_large_histories_are_in_memory_a_few_at_a_time(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Items that a client sent take 25 times as much memory as they had bytes, and many jobs end at once."""
    items = [{"role": "user", "content": "Why?"}, {"type": "reasoning", "summary": [[]] * 10_000}]
    monkeypatch.setattr(whole_jobs, "MAX_SIZE", 40_000)  # One of them has 30,000 characters.
    ids = []
    for _ in range(12):
        job = submit(database, input_items=items)
        cancellation.cancel(database, ANONYMOUS, job.id)
        ids.append(job.id)
    small = end(database)
    ids.append(small.id)

    def peak(read: Callable[[], object]) -> int:
        tracemalloc.start()
        read()
        traced = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return traced

    def export() -> None:
        pages = exporting.pages(database, None, Filters(), with_proofs=True)
        assert [each.job.id for page in pages for each in page] == ids

    prepared: list[sealing.Prepared] = []
    assert peak(lambda: prepared.extend(sealing.prepare(database, history))) < 4 << 20
    assert [one.id for one in prepared] == ids
    assert sealing.append(database, prepared, Signing()) == len(ids)
    assert peak(export) < 4 << 20
    assert peak(lambda: is_as_recorded(database)) < 4 << 20


class CrashError(Exception):
    """Stands for the end of the process: what was not committed is gone."""


POINTS = [
    "lock",
    "keys",
    "add_key",
    "seal_job",
    "add_entries",
    "set_tile",
    "add_checkpoint",
    "set_size",
]


@pytest.mark.parametrize("point", POINTS)
def test_a_transaction_that_breaks_off_leaves_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """`tests/acceptance/test_log_kills.py` kills the process itself."""
    end(database)
    module = log_checkpoints if point == "add_checkpoint" else log
    original = getattr(module, point)

    def crash(*arguments: Any, **named: Any) -> None:
        original(*arguments, **named)
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(module, point, crash)
        with pytest.raises(CrashError):
            seal(database)
    assert proving.get_checkpoint(database) is None
    assert proving.list_keys(database) == []
    assert seal(database) == 1
    assert is_as_recorded(database).jobs == 1


def test_a_deleted_job_leaves_its_entry_and_adds_one(database: Database) -> None:
    kept, deleted, unsealed = end(database), end(database), submit(database)
    seal(database)
    deletion.delete(database, ANONYMOUS, deleted.id)
    deletion.delete(database, ANONYMOUS, unsealed.id)
    assert is_as_recorded(database).deleted == 1, "also before the log says so"
    assert seal(database) == 1
    said = json.loads(entries(database)[2])
    assert (said["type"], said["entry"]) == ("helixq/deletion/v1", 1)
    report = is_as_recorded(database)
    assert (report.entries, report.jobs, report.deleted) == (3, 1, 1)
    assert proving.prove(database, ANONYMOUS, kept.id).index == 0


def test_retention_adds_deletions(database: Database) -> None:
    for _ in range(3):
        end(database)
    seal(database)
    with database.write() as connection:
        old = dt.datetime.now(dt.UTC) - dt.timedelta(days=3)
        connection.execute(sa.update(Job).values(finished_at=old))
    assert retention.delete_jobs(database, 2) == 3
    assert seal(database) == 3
    assert is_as_recorded(database).deleted == 3


def test_a_log_of_several_days_verifies(database: Database) -> None:
    """What ended or was added long before the newest entry has its own, and so was not added behind the log's back."""
    jobs = [end(database) for _ in range(3)]
    days_ago = [dt.datetime.now(dt.UTC) - dt.timedelta(days=days) for days in (3, 2, 0)]
    with database.write() as connection:
        for job, at in zip(jobs, days_ago, strict=True):
            ended = sa.update(Job).where(Job.id == job.id)
            connection.execute(ended.values(finished_at=at))
    assert seal(database) == 3
    for job in jobs:
        review(database, job.id)
    with database.write() as connection:
        drop_triggers(connection)
        for job, at in zip(jobs, days_ago, strict=True):
            added = sa.update(Review).where(Review.job_id == job.id)
            connection.execute(added.values(created_at=at))
    assert seal(database) == 3
    report = is_as_recorded(database)
    assert (report.jobs, report.reviews, report.unsealed) == (3, 3, 0)
    assert [proving.prove(database, None, job.id).index for job in jobs] == [0, 1, 2]
    # One without an entry that is older than the newest with one, and not older than all.
    between = days_ago[1] + dt.timedelta(days=1)
    review(database, jobs[0].id)
    late = sa.update(Review).where(Review.log_index.is_(None)).values(created_at=between)
    said = tamper(database, late)
    assert said.endswith(
        f"of job {jobs[0].id} was added: it is older than reviews that have an entry, and has none"
    )
    newest = end(database)
    said = tamper(database, sa.update(Job).where(Job.id == newest.id).values(finished_at=between))
    assert said == (
        f"job {newest.id} was added: it ended before jobs that have an entry, and has none"
    )


def test_a_deletion_waits_for_the_entry_of_its_job(database: Database) -> None:
    """The job was read to be sealed, and is deleted before it is."""
    job = end(database)
    prepared = sealing.prepare(database, history)
    deletion.delete(database, ANONYMOUS, job.id)
    assert sealing.append(database, prepared, Signing()) == 0
    assert is_as_recorded(database).entries == 0


def test_jobs_may_be_deleted_while_they_are_sealed(database: Database) -> None:
    """Whichever comes first, the log says what became of each job that it has."""
    jobs = [end(database) for _ in range(30)]

    def delete() -> None:
        for job in jobs[::2]:
            deletion.delete(database, ANONYMOUS, job.id)

    def seal_singly() -> None:
        while prepared := sealing.prepare(database, history, limit=3):
            sealing.append(database, prepared, Signing())

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(work) for work in (seal_singly, delete, seal_singly)]:
            done.result()
    seal(database)
    report = is_as_recorded(database)
    assert (report.jobs, report.unsealed) == (15, 0)
    assert report.entries == 15 + 2 * report.deleted


def test_jobs_that_ended_before_the_upgrade_are_sealed(database: Database) -> None:
    migrations.migrate(database.engine, "0010")
    migrations.migrate(database.engine)
    job = end(database)
    seal(database)
    migrations.migrate(database.engine, "0010")
    database.engine.dispose()
    migrations.migrate(database.engine)
    assert seal(database) == 1
    assert proving.prove(database, None, job.id).index == 0
    assert is_as_recorded(database).jobs == 1


def test_more_than_a_tile_of_jobs(database: Database) -> None:
    job = end(database)
    columns = [column.name for column in Job.__table__.columns if column.name != "id"]
    names = ", ".join(columns)
    with database.write() as connection:
        for number in range(300):
            connection.exec_driver_sql(
                f"INSERT INTO jobs (id, {names}) SELECT 'resp_{number}', {names} FROM jobs"
                f" WHERE id = '{job.id}'"
            )
    while seal(database):
        pass
    leaves = [merkle.leaf_hash(entry) for entry in entries(database)]
    assert checkpoint_of(database) == (301, rfc6962.mth(leaves))
    assert proving.get_tile(database, 0, Tile(0)) == b"".join(leaves[:256])
    assert proving.get_tile(database, 0, Tile(1, 45)) == b"".join(leaves[256:])
    assert proving.get_tile(database, 0, Tile(1, 10)) == b"".join(leaves[256:266])
    assert proving.get_tile(database, 1, Tile(0, 1)) == rfc6962.mth(leaves[:256])
    for level, tile in ((0, Tile(1)), (0, Tile(1, 46)), (1, Tile(0, 2)), (2, Tile(0, 1))):
        assert proving.get_tile(database, level, tile) is None
    assert proving.get_bundle(database, Tile(1, 46)) is None
    assert is_as_recorded(database).jobs == 301


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    text=st.text(st.characters(exclude_categories=["Cs"])),
    options=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])), st.integers() | st.floats()
    ),
)
def test_any_text_verifies(database: Database, text: str, options: dict[str, Any]) -> None:
    end(database, question=text, system=text, input_items=[{"content": text}], options=options)
    seal(database)
    report = is_as_recorded(database)
    assert report.jobs == report.entries
