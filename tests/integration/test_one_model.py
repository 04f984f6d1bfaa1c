"""One job, one model: who may claim a job, and when it restarts, on SQLite and on PostgreSQL."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from safetensors.torch import load_file, save_file

import migrations
from jobs import sweeper
from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.models import ANONYMOUS, AttemptStatus, Job, Status, Worker, WorkerState
from jobs.pipeline import MAX_PRIORITY, stage_seed
from jobs.progress import Progress
from jobs.queue import Publisher, make_app
from jobs.statements import leases, restarts
from jobs.statements import outbox as outbox_statements
from jobs.statements.leases import EXCLUSIVE_AFTER
from jobs.sweeper import Sweeper
from jobs.use_cases import outbox, queries, restarting, stages, sweeping, workers
from jobs.use_cases.workers import Runtime
from tests.conftest import RUNTIME, WORKER, find
from tests.integration.rows import OUTPUT, claim, let_leases_run_out, submit
from tests.servers import RedisServer

OTHER = "worker-2"
#: A worker's description of itself.
DESCRIPTION: dict[str, Any] = {
    "engine": "batching",
    "device": "cpu",
    "dtype": "float32",
    "quantization": "none",
    "base": {"name": "base", "digest": "sha256:b"},
    "adapters": {
        role: {"name": role, "digest": f"sha256:{role}"}
        for role in ("actor", "critic", "regenerator")
    },
    "versions": {"torch": "2.11"},
}
OTHER_DESCRIPTION = {**DESCRIPTION, "dtype": "bfloat16"}


@pytest.fixture
def two_models(database: Database) -> Database:
    """A database with two workers of different models, both ready."""
    workers.register(database, OTHER, "elsewhere", 2, Runtime(OTHER_DESCRIPTION, 4096, "{}"))
    for worker in (WORKER, OTHER):
        workers.set_state(database, worker, WorkerState.READY)
    return database


def leave(database: Database, worker: str, seconds: float) -> None:
    """Make a worker's last heartbeat this many seconds old."""
    with database.engine.begin() as connection:
        changed = sa.update(Worker).where(Worker.id == worker)
        connection.execute(changed.values(seen_at=utcnow(-seconds)))


def wait(database: Database, seconds: float) -> None:
    """Make all jobs' stages ready since this many seconds ago."""
    with database.engine.begin() as connection:
        connection.execute(sa.update(Job).values(ready_at=utcnow(-seconds)))


@pytest.mark.parametrize(
    "change",
    [
        {"base": {"name": "base", "digest": "sha256:c"}},
        {
            "adapters": {
                **DESCRIPTION["adapters"],
                "critic": {"name": "critic", "digest": "sha256:d"},
            }
        },
        {"dtype": "bfloat16"},
        {"quantization": "4bit"},
        {"engine": "reference"},
        {"split_special_tokens": True},
    ],
)
def test_everything_that_changes_a_text_changes_the_model(change: dict[str, Any]) -> None:
    assert (
        Runtime(DESCRIPTION, 4096, "{}").model
        != Runtime({**DESCRIPTION, **change}, 4096, "{}").model
    )


def test_names_hosts_and_versions_do_not_change_the_model() -> None:
    moved = {
        **DESCRIPTION,
        "device": "cuda:1",
        "base": {"name": "/elsewhere/base", "digest": "sha256:b"},
        "versions": {"torch": "2.12"},
    }
    assert Runtime(DESCRIPTION, 4096, "{}").model == Runtime(moved, 8192, "{}").model


def test_the_same_folder_with_other_contents_is_another_model(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))

    def model() -> str:
        checkpoints = find(folder)
        return Runtime(checkpoints.describe("batching"), checkpoints.context, "{}").model

    before = model()
    assert before == Runtime(find(checkpoint).describe("batching"), 99, "{}").model
    file = folder / "critic" / "adapter_model.safetensors"
    tensors = {name: tensor * 2 for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    assert model() != before


def test_the_first_claim_sets_the_jobs_model(two_models: Database) -> None:
    job = submit(two_models)
    assert stages.record(two_models, claim(two_models, job), OUTPUT)
    for stage_index in (1, 2):
        assert stages.claim(two_models, job.id, stage_index, OTHER, job_timeout=60) is None
        assert stages.record(two_models, claim(two_models, job, stage_index), OUTPUT)
    stored = queries.get_job(two_models, ANONYMOUS, job.id)
    assert (stored.status, stored.model, stored.run) == (Status.COMPLETED, RUNTIME.model, 1)
    assert {a.worker_id for a in stored.attempts} == {WORKER}
    released = submit(two_models)
    stages.release(two_models, claim(two_models, released, worker=OTHER), "the worker shut down")
    assert stages.claim(two_models, released.id, 0, WORKER, job_timeout=60) is None, (
        "also before a stage is finished"
    )
    assert stages.claim(two_models, released.id, 0, OTHER, job_timeout=60) is not None


def test_one_of_many_models_claims_a_job(two_models: Database) -> None:
    for _ in range(5):
        job = submit(two_models)
        with ThreadPoolExecutor(4) as pool:
            claims = list(
                pool.map(
                    lambda worker, job=job: stages.claim(
                        two_models, job.id, 0, worker, job_timeout=60
                    ),
                    [WORKER, OTHER] * 4,
                )
            )
        assert sum(claimed is not None for claimed in claims) == 1
        stored = queries.get_job(two_models, ANONYMOUS, job.id)
        assert stored.model == stored.attempts[0].worker.model


def test_stages_are_published_by_workers_of_their_model(
    two_models: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_statements, "REPUBLISH_AFTER", -1.0)
    job = submit(two_models)
    stages.record(two_models, claim(two_models, job), OUTPUT)
    assert outbox.take_unpublished(two_models, queue_empty=True, model="another") == []
    [waiting] = outbox.take_unpublished(two_models, queue_empty=False, model=RUNTIME.model)
    assert (waiting.job_id, waiting.model) == (job.id, RUNTIME.model)
    assert waiting.priority == MAX_PRIORITY, "started jobs go first"


def test_a_job_restarts_when_its_model_is_gone(two_models: Database) -> None:
    job = submit(two_models)
    for stage_index, text in enumerate(["an answer", "a critique"]):
        stages.record(
            two_models,
            claim(two_models, job, stage_index),
            replace(OUTPUT, text=text, delta_lengths=[len(text)]),
        )
    stages.release(two_models, claim(two_models, job, 2), "the worker shut down")
    workers.set_state(two_models, WORKER, WorkerState.STOPPED)
    before = queries.get_job(two_models, ANONYMOUS, job.id)
    wait(two_models, 700)
    leave(two_models, WORKER, 500)
    assert restarting.restart_jobs(two_models, 600) == [], "its worker was ready recently"
    leave(two_models, WORKER, 700)
    wait(two_models, 500)
    assert restarting.restart_jobs(two_models, 600) == [], "the stage has not waited for so long"
    wait(two_models, 700)
    assert restarting.restart_jobs(two_models, 600) == [job.id]
    assert restarting.restart_jobs(two_models, 0) == [], "once"

    stored = queries.get_job(two_models, ANONYMOUS, job.id)
    assert (stored.status, stored.stage_index, stored.run, stored.model) == (
        Status.IN_PROGRESS,
        0,
        2,
        None,
    )
    assert (stored.deadline_at, stored.started_at) == (before.deadline_at, before.started_at)
    assert stored.finished == []
    [restart] = stored.restarts
    assert (restart["run"], restart["model"]) == (2, RUNTIME.model)
    assert (
        restart["reason"] == "no worker with the model of the run before was ready for 600 seconds"
    )
    [waiting] = outbox.take_unpublished(two_models, queue_empty=False, model="whoever comes")
    assert (waiting.job_id, waiting.stage_index, waiting.model) == (job.id, 0, None)

    for stage_index, text in enumerate(["another answer", "another critique", "a better answer"]):
        claimed = claim(two_models, job, stage_index, OTHER)
        assert claimed.sampling.seed == stage_seed(7, stage_index)
        stages.record(two_models, claimed, replace(OUTPUT, text=text, delta_lengths=[len(text)]))
    stored = queries.get_job(two_models, ANONYMOUS, job.id)
    assert stored.status is Status.COMPLETED
    assert [(a.run, a.stage_index, a.number, a.status.value) for a in stored.attempts] == [
        (1, 0, 1, "finished"),
        (1, 1, 1, "finished"),
        (1, 2, 1, "released"),
        (2, 0, 2, "finished"),
        (2, 1, 2, "finished"),
        (2, 2, 2, "finished"),
    ]
    assert [a.output for a in stored.attempts[:2]] == ["an answer", "a critique"], (
        "all attempts are kept"
    )
    assert [a.output for a in stored.finished] == [
        "another answer",
        "another critique",
        "a better answer",
    ]
    assert "RESPONSE: another answer \nCRITIQUE: another critique" in stored.attempts[-1].prompt


def test_a_job_waits_until_its_model_timed_out(two_models: Database) -> None:
    job = submit(two_models)
    stages.record(two_models, claim(two_models, job), OUTPUT)
    wait(two_models, 700)
    assert restarting.restart_jobs(two_models, 600) == [], "its worker is ready, and busy"
    assert restarting.restart_jobs(two_models, 0) == []
    leave(two_models, WORKER, 700)
    workers.register(two_models, "failing", "localhost", 3, RUNTIME)
    workers.set_state(two_models, "failing", WorkerState.STOPPED)
    leave(two_models, OTHER, 700)
    assert restarting.restart_jobs(two_models, 600) == [], "no other worker is ready either"
    workers.set_state(two_models, OTHER, WorkerState.READY)
    assert restarting.restart_jobs(two_models, 600) == [job.id], (
        "a worker that was never ready does not count"
    )


def test_only_waiting_jobs_restart(two_models: Database) -> None:
    fresh, running, done = submit(two_models), submit(two_models), submit(two_models)
    claim(two_models, running)
    stages.fail(two_models, claim(two_models, done), "server_error", "broken")
    wait(two_models, 700)
    leave(two_models, WORKER, 700)
    assert restarting.restart_jobs(two_models, 600) == []
    let_leases_run_out(two_models)
    sweeping.sweep(two_models)
    assert restarting.restart_jobs(two_models, 600) == [], "its lease was just taken back"
    wait(two_models, 700)
    assert restarting.restart_jobs(two_models, 600) == [running.id]
    assert queries.get_job(two_models, ANONYMOUS, fresh.id).run == 1


def test_of_two_sweeps_one_restarts_a_job(two_models: Database) -> None:
    """Both found it before either had restarted it."""
    job = submit(two_models)
    stages.record(two_models, claim(two_models, job), OUTPUT)
    wait(two_models, 700)
    leave(two_models, WORKER, 700)
    with two_models.read() as connection:
        [found] = restarts.find_waiting(connection, 600, [RUNTIME.model], 1)
    assert restarting.restart_jobs(two_models, 600) == [job.id]
    with two_models.write() as connection:
        assert not leases.restart(connection, found, [])
    stored = queries.get_job(two_models, ANONYMOUS, job.id)
    assert (stored.run, len(stored.restarts)) == (2, 1)


def test_lost_workers_of_earlier_runs_count(two_models: Database) -> None:
    """The job may be what crashes workers, whatever their model."""
    job = submit(two_models)
    for _ in range(EXCLUSIVE_AFTER):
        claim(two_models, job)
        let_leases_run_out(two_models)
        sweeping.sweep(two_models)
    wait(two_models, 700)
    leave(two_models, WORKER, 700)
    assert restarting.restart_jobs(two_models, 600) == [job.id]
    assert stages.claim(two_models, job.id, 0, OTHER, job_timeout=60) is None, "not beside others"
    claim(two_models, job, worker=OTHER, exclusive=True)
    let_leases_run_out(two_models)
    assert sweeping.sweep(two_models).failed == [job.id]
    assert [a.status for a in queries.get_job(two_models, ANONYMOUS, job.id).attempts] == [
        AttemptStatus.LOST
    ] * 3


def test_no_job_restarts_right_after_an_outage(
    two_models: Database,
    progress: Progress,
    redis_server: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other workers' heartbeats have yet to arrive."""
    job = submit(two_models)
    stages.record(two_models, claim(two_models, job), OUTPUT)
    wait(two_models, 700)
    leave(two_models, WORKER, 700)
    model = Runtime(OTHER_DESCRIPTION, 4096, "{}").model
    publisher = Publisher(make_app(redis_server.url, model))
    process = Sweeper(two_models, publisher, progress, model=model, model_timeout=600)
    process.sweep()
    assert queries.get_job(two_models, ANONYMOUS, job.id).run == 1
    monkeypatch.setattr(sweeper, "ALIVE_FOR", 0.0)
    process.sweep()
    assert queries.get_job(two_models, ANONYMOUS, job.id).run == 2
    assert queries.get_job(two_models, ANONYMOUS, job.id).published_at is not None, (
        "the same sweep publishes it"
    )


def test_the_migration_sets_the_models_of_started_jobs(database_url: str) -> None:
    """Workers described their models before there was a single digest."""
    database = Database(database_url)
    migrations.migrate(database.engine)
    runtime = Runtime(DESCRIPTION, 4096, "{}")
    workers.register(database, WORKER, "localhost", 1, runtime)
    half_done, waiting = submit(database), submit(database)
    stages.record(database, claim(database, half_done), OUTPUT)
    before = [queries.get_job(database, ANONYMOUS, job.id).attempts for job in (half_done, waiting)]
    migrations.migrate(database.engine, "0002")
    migrations.migrate(database.engine)
    assert queries.get_job(database, ANONYMOUS, half_done.id).model == runtime.model
    assert queries.get_job(database, ANONYMOUS, waiting.id).model is None
    after = [queries.get_job(database, ANONYMOUS, job.id).attempts for job in (half_done, waiting)]
    assert [[a.output for a in attempts] for attempts in after] == [
        [a.output for a in attempts] for attempts in before
    ]
    assert stages.record(database, claim(database, half_done, 1), OUTPUT)
    database.close()
