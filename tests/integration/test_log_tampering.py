"""What was changed behind the program's back is noticed and named: in histories, and in the log."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest
import sqlalchemy as sa

from jobs.database import Database
from jobs.errors import TamperedError
from jobs.models import Job, LogCheckpoint, LogEntry, LogTile
from jobs.protocol.history import history
from jobs.statements import log
from jobs.tlog.note import Signer
from jobs.use_cases import proving, verifying, workers
from jobs.use_cases.log_signing import Signing
from tests.conftest import RUNTIME, WORKER
from tests.integration.sealed import end, seal
from tests.integration.tampering import change, is_as_recorded, new_value, tamper

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
        "tracestate",
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
        said = change(database, f"UPDATE {table} SET {changes} WHERE {where}")
        assert job.id in said, (column.name, said)
    assert is_as_recorded(database).jobs == 2


def test_the_first_record_that_was_changed_is_named(database: Database) -> None:
    jobs = [end(database) for _ in range(4)]
    seal(database)
    said = tamper(
        database, sa.update(Job).where(Job.id.in_([jobs[2].id, jobs[3].id])).values(question="x")
    )
    assert said == f"job {jobs[2].id} (entry 2) was changed"


@pytest.mark.parametrize("retries", ["[{}]", "[7]"])
def test_a_value_that_makes_no_history_is_noticed(database: Database, retries: str) -> None:
    """Of the jobs that are read together, the one that has it is named."""
    jobs = [end(database) for _ in range(3)]
    seal(database)
    said = tamper(database, f"UPDATE jobs SET retries = '{retries}' WHERE id = '{jobs[1].id}'")
    assert said.startswith(f"job {jobs[1].id} was changed"), said


def test_an_entry_that_became_text_or_empty_is_noticed(database: Database) -> None:
    job = end(database)
    seal(database)
    # PostgreSQL takes bytes alone.
    value = "CAST(entry AS TEXT)" if database.engine.dialect.name == "sqlite" else "''"
    said = tamper(database, f"UPDATE log_entries SET entry = {value}")
    assert said.startswith(f"entry 0, of job {job.id}, is not the one that was recorded there")


def test_a_job_that_lost_its_entry_is_noticed(database: Database) -> None:
    job = end(database)
    seal(database)
    said = tamper(database, "UPDATE jobs SET log_index = NULL")
    assert said == f"job {job.id} (entry 0) was changed: it claims no entry"


def test_a_removed_job_is_noticed(database: Database) -> None:
    jobs = [end(database) for _ in range(3)]
    seal(database)
    said = tamper(database, sa.delete(Job).where(Job.id == jobs[1].id))
    assert said == f"job {jobs[1].id} (entry 1) was removed"


def test_a_removed_attempt_is_noticed(database: Database) -> None:
    job = end(database)
    seal(database)
    said = tamper(database, f"DELETE FROM attempts WHERE job_id = '{job.id}' AND stage_index = 1")
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
        "UPDATE log_checkpoints SET note = replace(note, '1', '2')",
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
                "note": "replace(note, '3', '4')",  # The size is always there; other letters may not be.
                "origin": "'helixq/other'",
            }.get(column.name, f"{column.name} + 1")
            # It fails unless `verify` finds it.
            change(database, f"UPDATE {table} SET {column.name} = {value} WHERE {where}")
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
    with pytest.raises(TamperedError, match=r"the checkpoint in mine has 3: entry 2 was removed"):
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
            connection.exec_driver_sql(f"DELETE FROM {table}")
        connection.exec_driver_sql("UPDATE log_state SET size = 0")
        connection.execute(sa.update(Job).values(log_index=None, log_salt=None, question="x"))
    seal(database)
    assert is_as_recorded(database).jobs == 2
    with pytest.raises(TamperedError, match="checkpoint 2 is not trusted"):
        verifying.verify(database, history, trusted=[key])
    with database.write() as connection:  # With the stolen key, only a checkpoint tells.
        for table in ("log_entries", "log_tiles", "log_checkpoints", "log_keys"):
            connection.exec_driver_sql(f"DELETE FROM {table}")
        connection.exec_driver_sql("UPDATE log_state SET size = 0")
        connection.execute(sa.update(Job).values(log_index=None, log_salt=None))
    seal(database, Signing(Signer(key.name, private)))
    assert verifying.verify(database, history, trusted=[key]).jobs == 2
    with pytest.raises(TamperedError, match="not the one of the checkpoint in mine"):
        verifying.verify(database, history, trusted=[key], checkpoints=[("mine", earlier)])
