"""One job, one model: who may claim, and what is done when nobody may; on SQLite and on PostgreSQL."""

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
from jobs import db, maintenance
from jobs.db import utcnow
from jobs.maintenance import Maintenance
from jobs.models import AttemptStatus, Job, Status, Worker, WorkerState
from jobs.pipeline import MAX_PRIORITY, stage_seed
from jobs.progress import Progress
from jobs.queue import Doorbell, make_app
from jobs.store import Runtime, Store, publishing
from jobs.store.running import SUSPICIOUS
from tests.conftest import RUNTIME, WORKER, find
from tests.integration.rows import OUTPUT, claim, let_leases_run_out, submit
from tests.servers import RedisServer

OTHER = "worker-2"
#: What workers say of themselves.
TOLD: dict[str, Any] = {
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
OTHER_TOLD = {**TOLD, "dtype": "bfloat16"}


@pytest.fixture
def both(store: Store) -> Store:
    """A store with two workers of different models, both ready."""
    store.register(OTHER, "elsewhere", 2, Runtime(OTHER_TOLD, 4096, "{}"))
    for worker in (WORKER, OTHER):
        store.set_worker_state(worker, WorkerState.READY)
    return store


def leave(store: Store, worker: str, seconds: float) -> None:
    """Turn the clock back: a worker was last seen so long ago."""
    with store.engine.begin() as connection:
        changed = sa.update(Worker).where(Worker.id == worker)
        connection.execute(changed.values(seen_at=utcnow(-seconds)))


def wait(store: Store, seconds: float) -> None:
    """Turn the clock back: the jobs' stages are ready since so long ago."""
    with store.engine.begin() as connection:
        connection.execute(sa.update(Job).values(ready_at=utcnow(-seconds)))


@pytest.mark.parametrize(
    "change",
    [
        {"base": {"name": "base", "digest": "sha256:c"}},
        {"adapters": {**TOLD["adapters"], "critic": {"name": "critic", "digest": "sha256:d"}}},
        {"dtype": "bfloat16"},
        {"quantization": "4bit"},
        {"engine": "reference"},
        {"split_special_tokens": True},
    ],
)
def test_what_changes_a_text_is_another_model(change: dict[str, Any]) -> None:
    assert Runtime(TOLD, 4096, "{}").model != Runtime({**TOLD, **change}, 4096, "{}").model


def test_names_places_and_versions_change_no_text() -> None:
    moved = {
        **TOLD,
        "device": "cuda:1",
        "base": {"name": "/elsewhere/base", "digest": "sha256:b"},
        "versions": {"torch": "2.12"},
    }
    assert Runtime(TOLD, 4096, "{}").model == Runtime(moved, 8192, "{}").model


def test_the_same_folder_with_other_contents_is_another_model(
    checkpoint: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(checkpoint, tmp_path / "copy"))

    def model() -> str:
        found = find(folder)
        return Runtime(found.describe("batching"), found.context, "{}").model

    before = model()
    assert before == Runtime(find(checkpoint).describe("batching"), 99, "{}").model
    file = folder / "critic" / "adapter_model.safetensors"
    tensors = {name: tensor * 2 for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})
    assert model() != before


def test_the_first_claim_settles_a_jobs_model(both: Store) -> None:
    job = submit(both)
    assert both.record(claim(both, job), OUTPUT)
    for stage_index in (1, 2):
        assert both.claim(job.id, stage_index, OTHER, job_timeout=60) is None
        assert both.record(claim(both, job, stage_index), OUTPUT)
    kept = both.job(job.id)
    assert (kept.status, kept.model, kept.run) == (Status.COMPLETED, RUNTIME.model, 1)
    assert {a.worker_id for a in kept.attempts} == {WORKER}
    other = submit(both)
    both.release(claim(both, other, worker=OTHER), "the worker shut down")
    assert both.claim(other.id, 0, WORKER, job_timeout=60) is None, (
        "also before a stage is finished"
    )
    assert both.claim(other.id, 0, OTHER, job_timeout=60) is not None


def test_one_of_many_models_claims_a_job(both: Store) -> None:
    for _ in range(5):
        job = submit(both)
        with ThreadPoolExecutor(4) as pool:
            found = list(
                pool.map(
                    lambda worker, job=job: both.claim(job.id, 0, worker, job_timeout=60),
                    [WORKER, OTHER] * 4,
                )
            )
        assert sum(each is not None for each in found) == 1
        kept = both.job(job.id)
        assert kept.model == kept.attempts[0].worker.model


def test_stages_are_published_by_workers_of_their_model(
    both: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publishing, "REPUBLISH_AFTER", -1.0)
    job = submit(both)
    both.record(claim(both, job), OUTPUT)
    assert both.take_unpublished(queue_empty=True, model="another") == []
    [waiting] = both.take_unpublished(queue_empty=False, model=RUNTIME.model)
    assert (waiting.job_id, waiting.model) == (job.id, RUNTIME.model)
    assert waiting.priority == MAX_PRIORITY, "what has begun goes first"


def test_a_job_whose_model_is_gone_starts_again(both: Store) -> None:
    job = submit(both)
    for stage_index, text in enumerate(["an answer", "a critique"]):
        both.record(
            claim(both, job, stage_index), replace(OUTPUT, text=text, delta_lengths=[len(text)])
        )
    both.release(claim(both, job, 2), "the worker shut down")
    both.set_worker_state(WORKER, WorkerState.STOPPED)
    before = both.job(job.id)
    wait(both, 700)
    leave(both, WORKER, 500)
    assert both.restart(600) == [], "it was there not long ago"
    leave(both, WORKER, 700)
    wait(both, 500)
    assert both.restart(600) == [], "the stage has not waited for so long"
    wait(both, 700)
    assert both.restart(600) == [job.id]
    assert both.restart(0) == [], "once"

    kept = both.job(job.id)
    assert (kept.status, kept.stage_index, kept.run, kept.model) == (Status.IN_PROGRESS, 0, 2, None)
    assert (kept.deadline_at, kept.started_at) == (before.deadline_at, before.started_at)
    assert kept.finished == []
    [told] = kept.restarts
    assert (told["run"], told["model"]) == (2, RUNTIME.model)
    assert told["reason"] == "no worker with the model of the run before was ready for 600 seconds"
    [waiting] = both.take_unpublished(queue_empty=False, model="whoever comes")
    assert (waiting.job_id, waiting.stage_index, waiting.model) == (job.id, 0, None)

    for stage_index, text in enumerate(["another answer", "another critique", "a better answer"]):
        held = claim(both, job, stage_index, OTHER)
        assert held.sampling.seed == stage_seed(7, stage_index)
        both.record(held, replace(OUTPUT, text=text, delta_lengths=[len(text)]))
    kept = both.job(job.id)
    assert kept.status is Status.COMPLETED
    assert [(a.run, a.stage_index, a.number, a.status.value) for a in kept.attempts] == [
        (1, 0, 1, "finished"),
        (1, 1, 1, "finished"),
        (1, 2, 1, "released"),
        (2, 0, 2, "finished"),
        (2, 1, 2, "finished"),
        (2, 2, 2, "finished"),
    ]
    assert [a.output for a in kept.attempts[:2]] == ["an answer", "a critique"], "all of it is kept"
    assert [a.output for a in kept.finished] == [
        "another answer",
        "another critique",
        "a better answer",
    ]
    assert "RESPONSE: another answer \nCRITIQUE: another critique" in kept.attempts[-1].prompt


def test_a_job_waits_while_its_model_may_come_back(both: Store) -> None:
    job = submit(both)
    both.record(claim(both, job), OUTPUT)
    wait(both, 700)
    assert both.restart(600) == [], "its worker is ready, and busy"
    assert both.restart(0) == []
    leave(both, WORKER, 700)
    both.register("failing", "localhost", 3, RUNTIME)
    both.set_worker_state("failing", WorkerState.STOPPED)
    leave(both, OTHER, 700)
    assert both.restart(600) == [], "nobody else is there either"
    both.set_worker_state(OTHER, WorkerState.READY)
    assert both.restart(600) == [job.id], "one that never was ready does not count"


def test_only_jobs_that_wait_start_again(both: Store) -> None:
    fresh, running, done = submit(both), submit(both), submit(both)
    claim(both, running)
    both.fail(claim(both, done), "server_error", "broken")
    wait(both, 700)
    leave(both, WORKER, 700)
    assert both.restart(600) == []
    let_leases_run_out(both)
    both.sweep()
    assert both.restart(600) == [], "its stage was taken back just now"
    wait(both, 700)
    assert both.restart(600) == [running.id]
    assert both.job(fresh.id).run == 1


def test_losses_of_an_earlier_run_count(both: Store) -> None:
    """It may be the job that brings its workers down, whatever their model."""
    job = submit(both)
    for _ in range(SUSPICIOUS):
        claim(both, job)
        let_leases_run_out(both)
        both.sweep()
    wait(both, 700)
    leave(both, WORKER, 700)
    assert both.restart(600) == [job.id]
    assert both.claim(job.id, 0, OTHER, job_timeout=60) is None, "not beside others"
    claim(both, job, worker=OTHER, alone=True)
    let_leases_run_out(both)
    assert both.sweep().failed == [job.id]
    assert [a.status for a in both.job(job.id).attempts] == [AttemptStatus.LOST] * 3


def test_after_an_outage_nobody_starts_jobs_again_at_once(
    both: Store, progress: Progress, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other workers have yet to say that they are alive."""
    job = submit(both)
    both.record(claim(both, job), OUTPUT)
    wait(both, 700)
    leave(both, WORKER, 700)
    model = Runtime(OTHER_TOLD, 4096, "{}").model
    bell = Doorbell(make_app(redis_server.url, model))
    process = Maintenance(both, bell, progress, model=model, model_timeout=600, retention_days=0)
    process.sweep()
    assert both.job(job.id).run == 1
    monkeypatch.setattr(maintenance, "WORKER_STALE", 0.0)
    process.sweep()
    assert both.job(job.id).run == 2
    assert both.job(job.id).published_at is not None, "and it is published by the same sweep"


def test_half_done_jobs_of_before_are_settled_by_the_migration(database_url: str) -> None:
    """Their workers said what they had, if not under a single name."""
    engine = db.connect(database_url)
    migrations.migrate(engine)
    store = Store(database_url)
    runtime = Runtime(TOLD, 4096, "{}")
    store.register(WORKER, "localhost", 1, runtime)
    half_done, waiting = submit(store), submit(store)
    store.record(claim(store, half_done), OUTPUT)
    before = [store.job(job.id).attempts for job in (half_done, waiting)]
    migrations.migrate(engine, "0002")
    migrations.migrate(engine)
    assert store.job(half_done.id).model == runtime.model
    assert store.job(waiting.id).model is None
    after = [store.job(job.id).attempts for job in (half_done, waiting)]
    assert [[a.output for a in each] for each in after] == [[a.output for a in e] for e in before]
    assert store.record(claim(store, half_done, 1), OUTPUT)
    store.close()
    engine.dispose()
