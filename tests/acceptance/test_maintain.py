"""The background duties without a worker, and a worker without PyTorch: real processes on both databases."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa

from jobs.database import Database
from jobs.models import ANONYMOUS, AttemptStatus, Status, WorkerState
from jobs.tlog.cosignature import Cosigner, require
from jobs.trace_sending import TraceSending
from jobs.use_cases import outbox, proving, queries, workers
from tests.conftest import WORKER
from tests.integration.rows import claim, let_leases_run_out, submit
from tests.integration.sealed import end, seal
from tests.joining import join
from tests.polling import poll
from tests.receiver import Receiver
from tests.servers import Process, RedisServer, forked, settings_for, start
from tests.witness import Witness

ECHO_WORKER = (sys.executable, "-m", "tests.acceptance.echo_worker")


@pytest.fixture
def environ(database_url: str, redis_server: RedisServer, tmp_path: Path) -> dict[str, str]:
    return settings_for(database_url, redis_server.url, tmp_path)


def stop(process: Process) -> None:
    """Stop a process that handles signals, with more of them than it needs, until its last moment."""
    process.signal_until_end(signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    assert process.wait() == 0
    process.stop()
    assert "Traceback" not in process.output


@contextmanager
def alive(database: Database) -> Iterator[None]:
    """Keep the worker alive that only the database knows: stages are published for workers that are ready."""
    ended = threading.Event()

    def beat() -> None:
        while not ended.is_set():
            workers.heartbeat(database, WORKER, [])
            ended.wait(1)

    thread = threading.Thread(target=beat)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        join(thread)


def wait_for_cosignature(database: Database, witness: Witness) -> None:
    """Wait until what a witness has replied is stored. A process that stops waits a second for that."""
    poll(lambda: f"— {witness.name} " in str(proving.get_checkpoint(database)))


def test_duties_without_a_worker(database: Database, environ: dict[str, str]) -> None:
    end(database)
    seal(database)
    witness = Witness("witness.example")
    witness.log_key = str(proving.list_keys(database)[0])
    environ["HELIXQ_LOG_WITNESSES"] = witness.setting
    receiver = Receiver()
    environ["HELIXQ_OTLP_ENDPOINT"] = receiver.url
    TraceSending(database, receiver.url).send()  # Its place is after the job that has ended.
    workers.set_state(database, WORKER, WorkerState.READY)
    job = submit(database)
    claim(database, job)
    let_leases_run_out(database)
    with alive(database):
        maintain = forked("maintain", environ=environ)
        maintain.wait_for(f"{job.id}: its worker stopped responding")
        maintain.wait_for("published 1 jobs from the outbox")
    witness.wait_for(1)
    wait_for_cosignature(database, witness)
    end(database)
    [trace] = receiver.wait_for(1)
    stop(maintain)
    receiver.close()
    witness.close()
    assert b"invoke_agent helixnet" in trace.body
    assert set(witness.statuses) == {200}
    note = proving.get_checkpoint(database)
    assert note is not None
    assert require(note, [Cosigner.parse(witness.key)])
    assert [
        attempt.status for attempt in queries.get_job(database, ANONYMOUS, job.id).attempts
    ] == [AttemptStatus.LOST]


def test_a_worker_without_pytorch(database: Database, environ: dict[str, str]) -> None:
    job = submit(database)
    outbox.mark_unpublished(database, job.id, 0)
    worker = start(ECHO_WORKER, {**os.environ, **environ})
    worker.wait_for(f"{job.id}: regenerator finished")
    stop(worker)
    assert queries.get_job(database, ANONYMOUS, job.id).status is Status.COMPLETED


def _is_locked(session: sa.Connection) -> bool:
    """Lock the tables, and return whether that worked.

    A duty may have locked them in the other order. PostgreSQL then ends one of the two.
    """
    try:
        session.exec_driver_sql("LOCK TABLE jobs, workers IN ACCESS EXCLUSIVE MODE")
    except sa.exc.OperationalError:
        session.rollback()
        return False
    return True


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
@pytest.mark.usefixtures("database")
def test_a_lock_that_nobody_releases_delays_no_stop(
    database_url: str, environ: dict[str, str]
) -> None:
    """Supervisors wait for 30 seconds."""
    worker = forked(environ=environ, program=ECHO_WORKER)
    maintain = forked("maintain", environ=environ)
    other = sa.create_engine(database_url)  # Without the time limits of the program's own.
    try:
        worker.wait_for("ready: ")
        maintain.wait_for("running the background duties")
        with other.connect() as session:
            poll(lambda: _is_locked(session))
            for process in (worker, maintain):
                process.signal(signal.SIGTERM)
            assert maintain.wait() == 0
            assert worker.wait() == os.EX_SOFTWARE
        assert "exiting: the stop takes too long" in worker.output
    finally:
        other.dispose()
        for process in (worker, maintain):
            process.kill()
