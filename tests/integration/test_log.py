"""Ended jobs get into the log once, in order, whatever happens; and the log can be verified by others."""

from __future__ import annotations

import datetime as dt
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import migrations
from jobs.database import Database
from jobs.errors import JobNotFoundError, LogKeyError, NotSealedError
from jobs.models import ANONYMOUS, Job, LogCheckpoint, LogEntry, LogTile
from jobs.protocol.history import history
from jobs.statements import log
from jobs.tlog import merkle
from jobs.tlog.checkpoint import open_checkpoint
from jobs.tlog.note import Signer, Verifier
from jobs.tlog.proof import Proof
from jobs.tlog.tiles import Tile
from jobs.use_cases import (
    cancellation,
    deletion,
    proving,
    queries,
    retention,
    sealing,
    stages,
    verifying,
    workers,
)
from jobs.use_cases.sealing import Signing
from tests.conftest import RUNTIME, WORKER
from tests.integration.rows import OUTPUT, claim, submit
from tests.integration.sealed import end, seal
from tests.integration.tampering import change, is_as_recorded, new_value, tamper
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
        stored = log.list_checkpoints(connection, 0, 100)
    opened = [open_checkpoint(row.note, proving.list_keys(database)) for row in stored]
    assert [checkpoint.size for checkpoint in opened] == [1, 4, 6, 10]
    for old in opened:
        for new in opened:
            if old.size <= new.size:
                proof = rfc6962.proof(old.size, leaves[: new.size])
                merkle.verify_consistency(old.size, old.root, new.size, new.root, proof)


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
    original = getattr(log, point)

    def crash(*arguments: Any, **named: Any) -> None:
        original(*arguments, **named)
        raise CrashError

    with monkeypatch.context() as patch:
        patch.setattr(log, point, crash)
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
                f"INSERT INTO jobs (id, {names}) SELECT 'resp_{number}', {names} FROM jobs"  # noqa: S608 (of this file's own words)
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


# Keys.

NAME = "example.com/log"


def test_a_key_and_an_origin_can_be_given(database: Database) -> None:
    key = Signer.generate(NAME)
    end(database)
    seal(database, Signing.of(key.to_text(), None))
    assert proving.list_keys(database) == [key.verifier]
    report = verifying.verify(database, history, trusted=[key.verifier])
    assert (report.origin, report.jobs) == (NAME, 1)
    with database.read() as connection:
        assert [row.private for row in log.keys(connection)] == [None], (
            "it stays where it was given"
        )


def test_an_origin_alone_names_the_log(database: Database) -> None:
    end(database)
    seal(database, Signing(origin=NAME))
    assert [key.name for key in proving.list_keys(database)] == [NAME]
    end(database)
    with pytest.raises(
        LogKeyError, match=r"HELIXQ_LOG_ORIGIN is other, and the log is example.com/log"
    ):
        seal(database, Signing(origin="other"))
    assert seal(database) == 1


def test_keys_rotate(database: Database) -> None:
    kept, other = Signer.generate(NAME), Signer.generate(NAME)
    with pytest.raises(LogKeyError, match="no key yet"):
        sealing.rotate_key(database)
    end(database)
    seal(database, Signing(origin=NAME))
    second = sealing.rotate_key(database)
    for signing in (Signing(), Signing(kept), Signing(other)):
        end(database)
        seal(database, signing)
    with database.read() as connection:
        keys = log.keys(connection)
    assert [Verifier.parse(row.verifier) for row in keys][1:] == [
        second,
        kept.verifier,
        other.verifier,
    ]
    assert {row.private for row in keys} == {None}, "old keys are not kept"
    assert is_as_recorded(database).checkpoints == 4
    end(database)
    with pytest.raises(LogKeyError, match="is an old key"):
        seal(database, Signing(kept))
    with pytest.raises(LogKeyError, match="give it to this process too"):
        seal(database)
    with pytest.raises(LogKeyError, match="is a key of elsewhere"):
        seal(database, Signing(Signer.generate("elsewhere")))
    with pytest.raises(LogKeyError, match="HELIXQ_LOG_KEY"):
        sealing.rotate_key(database)
    assert seal(database, Signing(other)) == 1


# Tampering.


#: Columns that say nothing about a text: they lead a job through the queue, or are keys.
BOOKKEEPING = {
    "jobs": {
        "id",
        "idempotency_key",
        "request_digest",
        "stage_index",
        "ready_at",
        "published_at",
        "lease_token",
        "lease_expires_at",
        "worker_id",
        "unindexed",
        "counted",
        "retried_at",
    },
    "attempts": {"id", "lease_token", "delta_lengths"},
}
#: Of a worker, what histories have.
WORKER_COLUMNS = {"host", "pid", "model", "runtime"}


@pytest.mark.parametrize("table", ["jobs", "attempts", "workers"])
def test_a_change_of_any_column_is_noticed(database: Database, table: str) -> None:
    job, other = end(database, batch_id="batch_1", custom_id="line-1"), end(database)
    workers.register(database, "worker-2", "elsewhere", 2, RUNTIME)
    with database.write() as connection:
        failed = sa.update(Job).values(error_code="server_error", error_message="It broke.")
        connection.execute(failed)
    seal(database)
    columns = Job.metadata.tables[table].columns
    where = {
        "jobs": f"id = '{job.id}'",
        "attempts": f"job_id = '{job.id}' AND stage_index = 2",
        "workers": f"id = '{WORKER}'",
    }[table]
    for column in columns:
        if table == "workers" and column.name not in WORKER_COLUMNS:
            continue
        if column.name in BOOKKEEPING.get(table, ()):
            continue
        changes = f"{column.name} = {new_value(column, database.engine.dialect)}"
        if column.name == "job_id":
            changes = f"job_id = '{other.id}', number = 7"
        said = change(database, f"UPDATE {table} SET {changes} WHERE {where}")  # noqa: S608 (of this file's own words)
        assert job.id in said, (column.name, said)
    assert is_as_recorded(database).jobs == 2


def test_the_first_record_that_was_changed_is_named(database: Database) -> None:
    jobs = [end(database) for _ in range(4)]
    seal(database)
    said = tamper(
        database, sa.update(Job).where(Job.id.in_([jobs[2].id, jobs[3].id])).values(question="x")
    )
    assert said == f"job {jobs[2].id} (entry 2) was changed"


def test_a_removed_job_is_noticed(database: Database) -> None:
    jobs = [end(database) for _ in range(3)]
    seal(database)
    said = tamper(database, sa.delete(Job).where(Job.id == jobs[1].id))
    assert said == f"job {jobs[1].id} (entry 1) was removed"


def test_a_removed_attempt_is_noticed(database: Database) -> None:
    job = end(database)
    seal(database)
    said = tamper(database, f"DELETE FROM attempts WHERE job_id = '{job.id}' AND stage_index = 1")  # noqa: S608 (of this file's own words)
    assert said == f"job {job.id} (entry 0) was changed"


def test_an_added_job_is_noticed(database: Database) -> None:
    first, second = end(database), end(database)
    seal(database)
    added = end(database)
    claimed = sa.update(Job).where(Job.id == added.id)
    said = tamper(database, claimed.values(log_index=0, log_salt=bytes(32)))
    assert said == f"job {added.id} was added: the entry that it claims is not its own"
    before = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    said = tamper(database, claimed.values(log_index=None, log_salt=None, finished_at=before))
    assert f"job {added.id} was added" in said
    assert {first.id, second.id}.isdisjoint(said.split())


def test_swapped_jobs_are_noticed(database: Database) -> None:
    first, second = end(database), end(database)
    seal(database)
    swap = "UPDATE jobs SET log_index = 1 - log_index"
    assert tamper(database, swap) == f"job {first.id} (entry 0) was reordered: it claims entry 1"
    said = tamper(
        database,
        sa.update(LogEntry).values(
            job_id=sa.case((LogEntry.entry_index == 0, second.id), else_=first.id)
        ),
    )
    assert said == f"job {second.id} (entry 0) was changed"


def test_changes_of_the_log_itself_are_noticed(database: Database) -> None:
    for _ in range(3):
        end(database)
        seal(database)
    with database.read() as connection:
        first, second, _ = log.list_entries(connection, 0, 3)
        tile = log.get_tile(connection, 0, 0)

    def swapped(one: int, other: bytes) -> Any:
        return sa.update(LogEntry).where(LogEntry.entry_index == one).values(entry=other)

    assert tamper(database, swapped(0, second.entry), swapped(1, first.entry)).startswith(
        "entry 0, "
    )
    # The tile too: then the checkpoint differs.
    both = tile[32:64] + tile[:32] + tile[64:]
    said = tamper(database, sa.update(LogTile).values(hashes=both))
    assert said == (
        "the log is not the one of checkpoint 1, with 1 entries: one of the entries 0 to 0 was changed, "
        "removed, added or reordered"
    )
    tamper(
        database, sa.update(LogTile).values(hashes=tile), swapped(0, first.entry), swapped(1, b"{}")
    )
    assert tamper(
        database,
        swapped(1, second.entry),
        "UPDATE log_checkpoints SET note = replace(note, 'A', 'B')",
    ).startswith("checkpoint ")


def test_a_change_of_any_column_of_the_log_is_noticed(database: Database) -> None:
    end(database), end(database)
    seal(database)
    end(database)
    seal(database)
    for table, where in (
        ("log_entries", "entry_index = 2"),
        ("log_tiles", "level = 0"),
        ("log_checkpoints", "size = 3"),
        ("log_state", "id = 1"),
        ("log_keys", "id = 1"),
    ):
        for column in Job.metadata.tables[table].columns:
            # The times and keys of rows, and what signs from now on, say nothing about what was signed.
            if (table, column.name) == ("log_keys", "private") or column.name in {
                "id",
                "created_at",
            }:
                continue
            value = {
                "kind": "'review'",
                "job_id": "(SELECT min(job_id) FROM log_entries WHERE entry_index = 0)",
                "verifier": f"'{Signer.generate('helixq/other').verifier}'",
                "entry": "(SELECT entry FROM log_entries WHERE entry_index = 0)",
                "hashes": "(SELECT entry FROM log_entries WHERE entry_index = 0)",
                "note": "replace(note, 'A', 'B')",
                "origin": "'helixq/other'",
            }.get(column.name, f"{column.name} + 1")
            # It fails unless `verify` finds it.
            change(database, f"UPDATE {table} SET {column.name} = {value} WHERE {where}")  # noqa: S608 (of this file's own words)
    assert is_as_recorded(database).entries == 3


def test_a_shortened_log_is_noticed(database: Database) -> None:
    jobs = []
    for _ in range(3):
        jobs.append(end(database))
        seal(database)
    earlier = proving.get_checkpoint(database)
    assert earlier is not None
    removed = sa.delete(LogEntry).where(LogEntry.entry_index == 2)
    said = tamper(database, removed, sa.delete(Job).where(Job.id == jobs[2].id))
    assert said == "entry 2 was removed"
    said = tamper(database, "UPDATE log_state SET size = 2")
    assert "entry 2 was removed" in said
    with database.read() as connection:
        tile = log.get_tile(connection, 0, 0)
    with database.write() as connection:
        connection.execute(sa.delete(LogCheckpoint).where(LogCheckpoint.size == 3))
        connection.execute(sa.update(LogTile).values(hashes=tile[:64]))
    assert is_as_recorded(database).entries == 2, "nothing inside tells it"
    with pytest.raises(
        verifying.TamperedError, match=r"the checkpoint in mine has 3: entry 2 was removed"
    ):
        verifying.verify(database, history, checkpoints=[("mine", earlier)])


def test_a_log_that_was_made_anew_is_noticed_by_who_kept_a_key_or_a_checkpoint(
    database: Database,
) -> None:
    end(database), end(database)
    seal(database)
    [key] = proving.list_keys(database)
    earlier = proving.get_checkpoint(database)
    assert earlier is not None
    with database.write() as connection:
        private = log.keys(connection)[-1].private
        assert private is not None
        for table in ("log_entries", "log_tiles", "log_checkpoints", "log_keys"):
            connection.exec_driver_sql(f"DELETE FROM {table}")  # noqa: S608 (of this file's own words)
        connection.exec_driver_sql("UPDATE log_state SET size = 0")
        connection.execute(sa.update(Job).values(log_index=None, log_salt=None, question="x"))
    seal(database)
    assert is_as_recorded(database).jobs == 2
    with pytest.raises(verifying.TamperedError, match="checkpoint 2 is not trusted"):
        verifying.verify(database, history, trusted=[key])
    with database.write() as connection:  # With the stolen key, only a checkpoint tells.
        for table in ("log_entries", "log_tiles", "log_checkpoints", "log_keys"):
            connection.exec_driver_sql(f"DELETE FROM {table}")  # noqa: S608 (of this file's own words)
        connection.exec_driver_sql("UPDATE log_state SET size = 0")
        connection.execute(sa.update(Job).values(log_index=None, log_salt=None))
    seal(database, Signing(Signer(key.name, private)))
    assert verifying.verify(database, history, trusted=[key]).jobs == 2
    with pytest.raises(verifying.TamperedError, match="not the one of the checkpoint in mine"):
        verifying.verify(database, history, trusted=[key], checkpoints=[("mine", earlier)])
