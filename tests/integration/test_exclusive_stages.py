"""Stages that run exclusively, since they may be what brings workers down."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from celery.exceptions import Ignore

from jobs.database import Database
from jobs.progress import Progress
from jobs.use_cases import sweeping
from tests.conftest import WORKER
from tests.integration.held_engine import HeldEngine, finish
from tests.integration.rows import claim, let_leases_run_out, submit
from tests.polling import poll
from tests.servers import PATIENCE
from worker.progress_publisher import ProgressPublisher
from worker.stage_runner import StageRunner


def test_a_stage_that_waits_to_run_exclusively_takes_one_thread(
    database: Database, progress: Progress
) -> None:
    """Sweeps publish it every few seconds meanwhile, and a long text may hold it up for minutes."""
    publisher, engine = ProgressPublisher(progress), HeldEngine()
    runner = StageRunner(database, engine, publisher, WORKER, job_timeout=60)
    suspect, neighbor = submit(database), submit(database)
    for _ in range(2):
        claim(database, suspect)
        let_leases_run_out(database)
        sweeping.sweep(database)
    with ThreadPoolExecutor() as pool:
        running = pool.submit(runner.run, neighbor.id, 0)
        neighbors = engine.generations.get(timeout=PATIENCE)
        waiting = pool.submit(runner.run, suspect.id, 0)
        poll(lambda: runner._exclusive._running.has_pending_writers)
        with pytest.raises(Ignore, match="another thread waits"):
            pool.submit(runner.run, suspect.id, 0).result(PATIENCE)
        finish(neighbors)
        running.result(PATIENCE)
        finish(engine.generations.get(timeout=PATIENCE))
        waiting.result(PATIENCE)
    publisher.stop()
