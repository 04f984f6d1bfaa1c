"""Measures an idle service: the overhead of a single job, and a sweep that has nothing to do."""

from __future__ import annotations

import datetime as dt
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import torch
from transformers import AutoTokenizer

import migrations
from cli.bench import measure_service
from jobs.database import Database
from jobs.database_clock import utcnow
from jobs.database_engine import begin
from jobs.ids import new_id
from jobs.models import ANONYMOUS, Job, Status
from jobs.pipeline import Sampling
from jobs.settings import DEMO_CHECKPOINT
from jobs.use_cases import sweeping
from worker.bench.engine import run_jobs
from worker.bench.models import Model
from worker.engine.batching.engine import BatchingEngine
from worker.engine.batching.runner_setup import RunnerOptions
from worker.engine.threads import run_in_fresh_thread

CONTEXT = 4096
SLOTS = 16
#: Seconds before a job is first polled, as in the reply's ``Retry-After``: polling slows the job down.
FIRST_POLL = 1.0


def jobs(
    folder: Path,
    questions: Sequence[str],
    *,
    max_output_tokens: int,
    seed: int,
    on_progress: Callable[[str], object] = lambda _: None,
) -> list[tuple[float, float]]:
    """Answer questions one at a time, each by the engine alone and then by the service.

    Args:
        folder: an empty folder, for the service's data.
        questions: the questions.
        max_output_tokens: of every stage.
        seed: of the first job; each following job's is larger by one.
        on_progress: called with a description of the next step.

    Returns:
        for each question, the seconds of its three stages on the engine alone, and the seconds in the
        service from storing the job to storing its last output, by the database's clock.
    """
    on_progress("loading the engine")
    model = Model.of(DEMO_CHECKPOINT)
    tokenizer: Any = AutoTokenizer.from_pretrained(model.base)

    def load() -> BatchingEngine:
        loaded = model.load(torch.float32, torch.device("cpu"))
        return BatchingEngine.from_models(
            loaded, tokenizer, RunnerOptions(max_model_len=CONTEXT, max_num_seqs=SLOTS)
        )

    engine = run_in_fresh_thread(load)
    times: list[tuple[float, float]] = []
    on_progress("starting the service")
    try:
        with measure_service.service(folder, SLOTS) as client:
            on_progress(
                f"answering {len(questions)} questions, one at a time, by the engine and by the service"
            )
            for number, question in enumerate(questions):
                sampling = Sampling(max_output_tokens=max_output_tokens, seed=seed + number)
                engine_alone = run_jobs(engine, [question], at_once=1, sampling=sampling).seconds
                body = {
                    "input": question,
                    "max_output_tokens": max_output_tokens,
                    "seed": seed + number,
                }
                job_id = measure_service.submit(client, body)
                time.sleep(max(FIRST_POLL, engine_alone))  # As a polling client does.
                measure_service.wait(client, job_id)
                job = client.get(f"/api/jobs/{job_id}").json()
                created, finished = (
                    dt.datetime.fromisoformat(job[name]) for name in ("created_at", "finished_at")
                )
                times.append((engine_alone, (finished - created).total_seconds()))
    finally:
        engine.close()
    return times[1:]  # The first question warmed both up.


def sweep(folder: Path, old: int, rounds: int = 200) -> float:
    """Measure a sweep on SQLite that finds nothing to do.

    Args:
        folder: an empty folder, for the database.
        old: the number of ended jobs in the history.
        rounds: the number of sweeps.

    Returns:
        median seconds.
    """
    database = Database(f"sqlite:///{folder / 'jobs.sqlite3'}")
    migrations.migrate(database.engine)
    with database.engine.begin() as connection:
        begin(connection, write=True)
        row = {
            "owner": ANONYMOUS,
            "question": "Why?",
            "system": "",
            "temperature": 0.0,
            "top_k": 0,
            "top_p": 1.0,
            "max_output_tokens": 1,
            "seed": 0,
            "rounds": 1,
            "priority": 5,
            "background": True,
            "metadata": {},
            "status": Status.COMPLETED,
        }
        statement = sa.insert(Job).values(finished_at=utcnow())
        if old:
            connection.execute(statement, [{**row, "id": new_id("resp_")} for _ in range(old)])
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        sweeping.any_unfinished(database)
        times.append(time.perf_counter() - start)
    database.close()
    return statistics.median(times)
